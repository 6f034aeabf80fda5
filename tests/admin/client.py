"""Asks a writer through a client that is generated from the contract: what an operator with another language than ours would do.

Usage: client.py ADDRESS ROOT_CERTIFICATE PROTO_FOLDER TABLE
The token stands in the variable LAKE_TOKEN. Prints one JSON object with what was answered.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import grpc
import grpc_tools
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc


def generated(proto_folder):
    """Generates the client and returns where it is."""
    out = tempfile.mkdtemp()
    files = [str(path) for folder in ["lake/admin/v1", "externalscaler"] for path in Path(proto_folder, folder).glob("*.proto")]
    well_known = str(Path(grpc_tools.__file__).parent / "_proto")
    code = protoc.main(["", f"-I{proto_folder}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files])
    if code != 0:
        sys.exit("the contract cannot be compiled")
    return out


def every_call(channel, proto_folder):
    """Asks each call of the contract once, with an empty request and a request id: what it answers, by its name."""
    answers = {}
    for path in sorted(Path(proto_folder, "lake/admin/v1").glob("*_service.proto")):
        module = importlib.import_module(f"lake.admin.v1.{path.stem}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = message_factory.GetMessageClass(method.input_type)()
                if "request_id" in method.input_type.fields_by_name:
                    request.request_id = f"every-{method.name}"
                call = channel.unary_stream(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
                )
                try:
                    next(iter(call(request, timeout=30)), None)
                    answers[method.name] = "OK"
                except grpc.RpcError as error:
                    answers[method.name] = error.code().name
    return answers


def ask_as_keda(channel):
    """What KEDA does, which has no token: whether a stage is active, its metric, and what that is while no fetcher is there."""
    from externalscaler import externalscaler_pb2, externalscaler_pb2_grpc

    scaler = externalscaler_pb2_grpc.ExternalScalerStub(channel)
    scaled = externalscaler_pb2.ScaledObjectRef(name="lake", namespace="lake", scalerMetadata={"stage": "fetcher"})
    specs = scaler.GetMetricSpec(scaled).metricSpecs
    active = [scaler.IsActive(scaled).result, next(iter(scaler.StreamIsActive(scaled))).result]
    try:
        scaler.GetMetrics(externalscaler_pb2.GetMetricsRequest(scaledObjectRef=scaled, metricName=specs[0].metricName))
        unknown = None
    except grpc.RpcError as error:
        unknown = error.code().name
    return [active, [[spec.metricName, spec.targetSizeFloat] for spec in specs], unknown]


def main(address, root_certificate, proto_folder, table):
    sys.path.insert(0, generated(proto_folder))
    from lake.admin.v1 import lake_service_pb2, lake_service_pb2_grpc, operation_service_pb2, operation_service_pb2_grpc
    from lake.admin.v1 import quarantine_service_pb2, quarantine_service_pb2_grpc
    from lake.admin.v1 import record_service_pb2, record_service_pb2_grpc
    from lake.admin.v1 import table_service_pb2, table_service_pb2_grpc

    credentials = grpc.ssl_channel_credentials(Path(root_certificate).read_bytes())
    token = grpc.access_token_call_credentials(os.environ["LAKE_TOKEN"])
    with_token = grpc.secure_channel(address, grpc.composite_channel_credentials(credentials, token))
    without = grpc.secure_channel(address, credentials)

    tables = table_service_pb2_grpc.TableServiceStub(with_token)
    operations = operation_service_pb2_grpc.OperationServiceStub(with_token)
    lake = lake_service_pb2_grpc.LakeServiceStub(with_token)
    quarantine = quarantine_service_pb2_grpc.QuarantineServiceStub(with_token)
    records = record_service_pb2_grpc.RecordServiceStub(with_token)

    listed = tables.ListTables(table_service_pb2.ListTablesRequest())
    asked = tables.CompactTable(table_service_pb2.CompactTableRequest(request_id="from-python", name=table))
    states = [
        operation_service_pb2.OperationState.Name(told.operation.state)
        for told in operations.WatchOperation(operation_service_pb2.WatchOperationRequest(id=asked.operation.id))
    ]
    versions = tables.ListTableVersions(table_service_pb2.ListTableVersionsRequest(name=table, page_size=1))
    files = tables.ListTableFiles(table_service_pb2.ListTableFilesRequest(name=table))
    vacuum = tables.VacuumTable(table_service_pb2.VacuumTableRequest(request_id="plan", name=table, dry_run=True))
    vacuum_id = vacuum.operation.id
    for told in operations.WatchOperation(operation_service_pb2.WatchOperationRequest(id=vacuum_id)):
        vacuum = told
    try:
        tables.GetTable(table_service_pb2.GetTableRequest(name="nothing"))
        refused = None
    except grpc.RpcError as error:
        refused = error.code().name
    try:
        lake_service_pb2_grpc.LakeServiceStub(without).GetStatus(lake_service_pb2.GetStatusRequest())
        stranger = None
    except grpc.RpcError as error:
        stranger = error.code().name
    summary = quarantine.SummarizeQuarantine(quarantine_service_pb2.SummarizeQuarantineRequest())
    entries = quarantine.ListQuarantineEntries(quarantine_service_pb2.ListQuarantineEntriesRequest(page_size=1)).entries
    entry = quarantine.GetQuarantineEntry(quarantine_service_pb2.GetQuarantineEntryRequest(id=entries[0].id))
    replay = quarantine.ReplayQuarantine(
        quarantine_service_pb2.ReplayQuarantineRequest(request_id="replay", dry_run=True)
    )
    replay_id = replay.operation.id
    for told in operations.WatchOperation(operation_service_pb2.WatchOperationRequest(id=replay_id)):
        replay = told
    trace = records.TraceRecord(record_service_pb2.TraceRecordRequest(id=entries[0].document_id))
    status = lake.GetStatus(lake_service_pb2.GetStatusRequest())
    health = health_pb2_grpc.HealthStub(without).Check(
        health_pb2.HealthCheckRequest(service="lake.admin.v1.TableService")
    )
    print(
        json.dumps(
            {
                "tables": [one.name for one in listed.tables],
                "states": states,
                "newest_operation": versions.versions[0].operation,
                "more_versions": versions.next_page_token != "",
                "rows": [file.rows for file in files.files],
                "plan": [vacuum.operation.dry_run, vacuum.operation.plan_id != ""],
                "quarantined": [[group.reason, group.entries] for group in summary.groups],
                "entry": [entry.entry.document_id, entry.detail, entry.payload.decode()],
                "replay": dict(replay.operation.result),
                "trace": [trace.state, trace.rows[0].table],
                "every_call": every_call(with_token, proto_folder),
                "keda": ask_as_keda(without),
                "refused": refused,
                "stranger": stranger,
                "role": lake_service_pb2.WriterRole.Name(status.asked.role),
                "health": health_pb2.HealthCheckResponse.ServingStatus.Name(health.status),
                "services": sorted(ProtoReflectionDescriptorDatabase(without).get_services()),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
