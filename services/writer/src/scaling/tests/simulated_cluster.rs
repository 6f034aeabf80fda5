//! Pods as KEDA and a HorizontalPodAutoscaler have them: <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>.

use std::collections::VecDeque;

/// Time that a pod takes until it works, seconds.
const POD_STARTS_IN: u64 = 40;

/// The chart's `stabilizationWindowSeconds` when there are to be fewer.
const DOWN_STABILIZATION: u64 = 120;

/// Replicas are changed no more often, seconds; by as many again at most.
const POLICY_PERIOD: u64 = 60;

/// A Deployment with its autoscaler.
pub(super) struct Deployment {
    /// When each pod works.
    works_from: Vec<u64>,
    max_replicas: u32,
    recommended: VecDeque<(u64, u32)>,
    changed_at: u64,
    /// Replicas after each change.
    pub(super) changes: Vec<(u64, u32)>,
}

impl Deployment {
    pub(super) fn new(replicas: usize, max_replicas: u32) -> Self {
        let works_from = vec![0; replicas];
        Self { works_from, max_replicas, recommended: VecDeque::new(), changed_at: 0, changes: Vec::new() }
    }

    pub(super) fn replicas(&self) -> u32 {
        self.works_from.len() as u32
    }

    pub(super) fn working(&self, now: u64) -> usize {
        self.works_from.iter().filter(|from| **from <= now).count()
    }

    /// A round of the autoscaler. Without a metric nothing changes.
    pub(super) fn follow(&mut self, now: u64, metric: Option<f64>) {
        let Some(metric) = metric else { return };
        let replicas = self.replicas();
        let within_tolerance = (metric / f64::from(replicas) - 1.0).abs() <= 0.1;
        let wanted = if within_tolerance { replicas } else { metric.ceil() as u32 };
        self.recommended.push_back((now, wanted.clamp(1, self.max_replicas)));
        self.recommended.retain(|(at, _)| now - at <= DOWN_STABILIZATION);
        let highest = self.recommended.iter().map(|(_, wanted)| *wanted).max().unwrap_or(replicas);
        let wanted = wanted.min(self.max_replicas).max(highest.min(replicas));
        if wanted == replicas || now - self.changed_at < POLICY_PERIOD {
            return;
        }
        self.works_from.resize(wanted.min(2 * replicas) as usize, now + POD_STARTS_IN);
        self.changed_at = now;
        self.changes.push((now, self.replicas()));
    }

    /// How often more became fewer, or fewer more.
    pub(super) fn turns(&self, began_with: u32) -> usize {
        let counts: Vec<u32> =
            std::iter::once(began_with).chain(self.changes.iter().map(|(_, count)| *count)).collect();
        let rises: Vec<bool> = counts.windows(2).map(|pair| pair[1] > pair[0]).collect();
        rises.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    /// Whether there were ever more within a time than before.
    pub(super) fn grew_within(&self, from: u64, until: u64) -> bool {
        let changes = self.changes.windows(2).filter(|pair| (from..until).contains(&pair[1].0));
        changes.into_iter().any(|pair| pair[1].1 > pair[0].1)
    }
}
