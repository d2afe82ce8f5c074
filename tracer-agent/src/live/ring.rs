//! How the ring fares: how full it was found, and what it had no room for.

/// A record's header in the ring (BPF_RINGBUF_HDR_SZ).
const HEADER: u64 = 8;

/// A peak is told for so long, and as long again.
const KEEP: u64 = 30_000_000_000;

/// How often losses are looked at.
const COUNT: u64 = 1_000_000_000;

/// While more and more is lost, this long is waited for it to stop.
const WAIT: u64 = 10_000_000_000;

/// The most that was found in the ring at a time.
#[derive(Debug, Default)]
pub(super) struct Peak {
    /// Read since it was last empty.
    run: u64,
    /// The most of this period, and of the one before.
    most: [u64; 2],
    since: u64,
}

impl Peak {
    pub(super) fn read(&mut self, record: usize) {
        self.run += (record as u64).next_multiple_of(8) + HEADER;
    }

    pub(super) fn end(&mut self, now: u64) {
        if now.saturating_sub(self.since) >= KEEP {
            self.since = now;
            self.most = [0, self.most[0]];
        }
        self.most[0] = self.most[0].max(std::mem::take(&mut self.run));
    }

    /// What came while it was read is in it: at most `limit` was there at a time.
    pub(super) fn most(&self, limit: u64) -> u64 {
        self.most[0].max(self.most[1]).min(limit)
    }
}

/// After records were lost it is time to look for what ended unseen: it would stay open for ever.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Records that were lost, and when that was asked.
    lost: u64,
    counted: u64,
    /// When the first of those was lost that nothing was done about.
    since: Option<u64>,
}

impl Losses {
    /// Whether to look now. `lost`: asked where it is time to.
    pub(super) fn is_due(&mut self, now: u64, lost: impl FnOnce() -> u64) -> bool {
        if now.saturating_sub(self.counted) < COUNT {
            return false;
        }
        self.counted = now;
        let lost = lost();
        let grows = std::mem::replace(&mut self.lost, lost) != lost;
        if grows {
            self.since.get_or_insert(now);
        }
        let due = self.since.is_some_and(|since| !grows || now.saturating_sub(since) >= WAIT);
        if due {
            self.since = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_told_for_a_while() {
        let mut peak = Peak::default();
        peak.read(100);
        peak.read(24);
        peak.end(1);
        peak.read(24);
        peak.end(2);
        assert_eq!(peak.most(1000), 104 + 8 + 24 + 8);
        assert_eq!(peak.most(100), 100);
        peak.end(KEEP);
        assert_eq!(peak.most(1000), 144);
        peak.end(2 * KEEP);
        assert_eq!(peak.most(1000), 0);
    }

    #[test]
    fn it_is_time_when_losses_stop_or_go_on_for_long() {
        let mut losses = Losses::default();
        // By second, what was lost until then.
        let totals = [0, 0, 5, 9, 9, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 20];
        let due = totals.iter().enumerate().filter(|(second, total)| {
            let now = (*second as u64 + 1) * COUNT;
            assert!(!losses.is_due(now - COUNT / 2, || unreachable!("too early")) || *second == 0);
            losses.is_due(now, || **total)
        });
        assert_eq!(due.map(|(second, _)| second).collect::<Vec<_>>(), [4, 16]);
    }
}
