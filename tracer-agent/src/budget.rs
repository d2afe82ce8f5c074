//! Keeps what the tracer takes of the processors within a budget: what it took in the last second decides what
//! is left out in the next. In this order: of large calls all but their start and end; then connections, by a
//! hash of their name, down to a few. With hysteresis: what was left out comes back step by step, within some
//! seconds, when there is room for it.

use tracer_common::config::{SHED_PARTS, Shed};

/// How often is decided: 1 s.
const STEP: u64 = 1_000_000_000;

/// Connections that are always captured, in parts of [`SHED_PARTS`].
const KEPT_MIN: u32 = SHED_PARTS / 64;

/// Below this part of the budget more may be captured, above that less has to be. What is aimed at lies between.
const LOW: f64 = 0.8;
const HIGH: f64 = 1.0;
const AIM: f64 = 0.9;

/// How many times as much is captured at most, from one second to the next.
const GROWTH: f64 = 4.0;

/// Seconds below the low mark before content is copied again.
const CALM: u32 = 2;

#[derive(Clone, Debug)]
pub struct Budget {
    /// Of one core.
    limit: f64,
    shed: Shed,
    calm: u32,
    last: Option<(u64, u64)>,
    /// What was taken in the last step, as a part of one core.
    pub taken: f64,
    /// How often something changed.
    pub steps: u64,
}

impl Budget {
    pub fn new(limit: f64) -> Self {
        Self { limit, shed: Shed::default(), calm: 0, last: None, taken: 0.0, steps: 0 }
    }

    pub fn set_limit(&mut self, limit: f64) {
        self.limit = limit;
    }

    pub fn shed(&self) -> Shed {
        self.shed
    }

    /// As [`Self::handle`]; `used` is asked only when it is time.
    pub fn handle_due(&mut self, now: u64, used: impl FnOnce() -> u64) -> Option<Shed> {
        let is_due = self.last.is_none_or(|(since, _)| now.saturating_sub(since) >= STEP);
        if is_due { self.handle(now, used()) } else { None }
    }

    /// `used`: nanoseconds of processors until now. Returns what is to be left out from here on, if that is news.
    pub fn handle(&mut self, now: u64, used: u64) -> Option<Shed> {
        let Some((since, before)) = self.last else {
            self.last = Some((now, used));
            return None;
        };
        let time = now.saturating_sub(since);
        if time < STEP {
            return None;
        }
        self.last = Some((now, used));
        self.taken = used.saturating_sub(before) as f64 / time as f64;
        let shed = self.decide();
        if shed == self.shed {
            return None;
        }
        self.shed = shed;
        self.steps += 1;
        Some(shed)
    }

    fn decide(&mut self) -> Shed {
        let load = self.taken / self.limit;
        let kept = SHED_PARTS - self.shed.connections;
        let connections = |kept: f64| SHED_PARTS - (kept as u32).clamp(KEPT_MIN, SHED_PARTS);
        if load > HIGH {
            self.calm = 0;
            if self.shed.content == 0 {
                return Shed { content: 1, ..self.shed };
            }
            return Shed { connections: connections(f64::from(kept) * AIM / load), content: 1 };
        }
        if load >= LOW {
            self.calm = 0;
            return self.shed;
        }
        if self.shed.connections > 0 {
            let growth = (AIM / load.max(1e-9)).min(GROWTH);
            // A small part that grows a little is one more at least.
            return Shed { connections: connections((f64::from(kept) * growth).ceil()), ..self.shed };
        }
        self.calm += 1;
        if self.shed.content != 0 && self.calm >= CALM {
            return Shed::default();
        }
        self.shed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine where all connections together cost `full` of a core, a third of it for content.
    fn run(budget: &mut Budget, clock: &mut (u64, u64), full: f64, seconds: u32) -> Vec<f64> {
        (0..seconds)
            .map(|_| {
                let shed = budget.shed();
                let kept = 1.0 - f64::from(shed.connections) / f64::from(SHED_PARTS);
                let cost = full * kept * if shed.content != 0 { 0.67 } else { 1.0 };
                clock.0 += STEP;
                clock.1 += (cost * STEP as f64) as u64;
                budget.handle(clock.0, clock.1);
                cost
            })
            .collect()
    }

    #[test]
    fn a_load_of_three_times_the_budget_is_held_within_a_quarter() {
        let (mut budget, mut clock) = (Budget::new(0.1), (0, 0));
        assert!(run(&mut budget, &mut clock, 0.05, 10).iter().all(|cost| *cost == 0.05));
        assert_eq!((budget.shed(), budget.steps), (Shed::default(), 0));
        let costs = run(&mut budget, &mut clock, 0.3, 60);
        let mean = costs.iter().sum::<f64>() / 60.0;
        assert!((0.075..=0.125).contains(&mean), "{mean}");
        assert!(costs[5..].iter().all(|cost| (0.07..=0.125).contains(cost)), "{costs:?}");
        // It settles: what is left out does not change all the time.
        assert!(budget.steps < 15, "{}", budget.steps);
    }

    #[test]
    fn everything_is_back_within_ten_seconds() {
        let (mut budget, mut clock) = (Budget::new(0.05), (0, 0));
        run(&mut budget, &mut clock, 5.0, 30);
        assert_eq!(budget.shed(), Shed { connections: SHED_PARTS - KEPT_MIN, content: 1 });
        run(&mut budget, &mut clock, 0.0, 9);
        assert_eq!(budget.shed(), Shed::default());
    }

    #[test]
    fn content_goes_before_connections() {
        let (mut budget, mut clock) = (Budget::new(0.1), (0, 0));
        run(&mut budget, &mut clock, 0.13, 3);
        assert_eq!(budget.shed(), Shed { connections: 0, content: 1 });
        // Without it there is room: it stays away while what it saves is what makes the room.
        run(&mut budget, &mut clock, 0.13, 30);
        assert_eq!(budget.shed().connections, 0);
    }
}
