//! Which CPUs there are, and what a thread has used of one. Read around a run, never within.

/// The CPUs that this process may run on.
pub fn ours() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

/// Pins the calling thread. False when the CPU is not there or not ours.
pub fn pin(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

/// What the calling thread has had of a CPU so far, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Running.
    pub ran: u64,
    /// Ready to run while something else ran.
    pub waited: u64,
}

impl Usage {
    /// Reads the scheduler's own figures; zeros where the kernel keeps none.
    pub fn now() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0));
        Self { ran: fields.next().unwrap_or(0), waited: fields.next().unwrap_or(0) }
    }

    /// What came since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}
