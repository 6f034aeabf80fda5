{{/* Name of everything that belongs to this release. */}}
{{- define "lake.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels that select the pods of a component: dict "root" $ "component" "fetcher". */}}
{{- define "lake.selector" -}}
app.kubernetes.io/name: commcare-lake
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "lake.labels" -}}
{{ include "lake.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: commcare-lake
{{- end }}

{{- define "lake.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The pod of every component, whatever its name: what restricted Pod Security asks for. */}}
{{- define "lake.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "lake.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Metadata of a pod: dict "root" $ "component" … "values" … */}}
{{- define "lake.podMetadata" -}}
labels:
  {{- include "lake.labels" . | nindent 2 }}
annotations:
  # Another configuration starts the pods anew, one after the other.
  checksum/config: {{ .values.config | sha256sum }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What the pods of all components have in common. */}}
{{- define "lake.podSpec" -}}
serviceAccountName: {{ include "lake.name" .root }}-{{ .component }}
automountServiceAccountToken: false
# Variables that Kubernetes makes of Services begin with LAKE_ where a Service does, and would be read as configuration.
enableServiceLinks: false
securityContext:
  {{- include "lake.podSecurity" . | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What keeps the pods of a component apart. */}}
{{- define "lake.spread" -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "lake.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{/* Time to end: out of the Services, the drain, and some more. */}}
{{- define "lake.grace" -}}
{{ add .Values.drainSeconds .Values.preStopSeconds 10 }}
{{- end }}

{{/* Image, command, variables and mounts of a component's container: dict "root" $ "component" "writer" "program" "writer" "verb" "serve" "values" … "secretName" … */}}
{{- define "lake.container" -}}
image: {{ include "lake.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [{{ .program }}, {{ .verb }}, --config, /etc/commcare-lake/{{ .program }}.toml]
securityContext:
  {{- include "lake.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
envFrom:
  - secretRef: { name: {{ .secretName }} }
{{- end }}

{{/* Probes and the way to end of a container that serves. */}}
{{- define "lake.serving" -}}
ports:
  - { name: http, containerPort: 9600 }
# Alive from the beginning, also while it waits for other servers.
startupProbe:
  httpGet: { path: /live, port: http }
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /live, port: http }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /ready, port: http }
  periodSeconds: 10
  timeoutSeconds: 10
lifecycle:
  preStop:
    sleep: { seconds: {{ .root.Values.preStopSeconds }} }
{{- end }}

{{/* Variables that tie a service to this chart's ports, times and volumes; they win over the file. */}}
{{- define "lake.servingEnv" -}}
- { name: LAKE_TELEMETRY__HTTP_ADDRESS, value: "0.0.0.0:9600" }
- { name: LAKE_PROCESS__SHUTDOWN_GRACE_SECONDS, value: {{ .root.Values.drainSeconds | quote }} }
{{- with .values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Up one at a time, down slowly: each change makes the fetchers share the partitions anew. */}}
{{- define "lake.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 60
  policies: [{ type: Pods, value: 1, periodSeconds: 60 }]
scaleDown:
  stabilizationWindowSeconds: 900
  policies: [{ type: Pods, value: 1, periodSeconds: 300 }]
{{- end }}

{{/* The writer has decided slowly already; Kubernetes only follows. */}}
{{- define "lake.kedaBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{ type: Percent, value: 100, periodSeconds: 60 }]
scaleDown:
  stabilizationWindowSeconds: 120
  policies: [{ type: Percent, value: 100, periodSeconds: 60 }]
{{- end }}
