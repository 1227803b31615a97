//! One run: a storm, then calm, in which everything has to settle and then to be at rest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic;
use std::sync::Once;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::agent::Machine;
use crate::faults::Faults;
use crate::invariants::{Invariant, Violation};
use crate::judge::{self, Restless};
use crate::pins::Pins;
use crate::regressions::REGRESSIONS;
use crate::runtime::REMOVE_SURPLUS;
use crate::users::Users;
use crate::world::{LogMode, World};

/// Crash back-off lasts up to 5 minutes and a call that hangs may take effect as late, each
/// of them more than once before all is done.
const SETTLES_WITHIN: Duration = Duration::from_secs(25 * 60);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it is watched at rest.
const REST: Duration = Duration::from_secs(10 * 60);

/// Tells the chance that the runtime forgets from all others.
const FORGETS: u64 = 0xf0_46e7;
/// And the chance of CPUs for single pods.
const PINS: u64 = 0xc9_a5;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The length of the storm; drawn from the seed if absent.
    pub storm: Option<Duration>,
    pub log: LogMode,
}

pub struct Outcome {
    pub violations: Vec<Violation>,
    pub log: Vec<String>,
}

/// Runs one seed in a tokio runtime of its own, on the thread of the caller.
pub fn run(seed: u64, options: Options) -> Outcome {
    let _listening = listen_for_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O can always be built");
    let (mut violations, log) = runtime.block_on(live(seed, options));
    drop(runtime);
    violations.extend(panics().into_iter().map(|what| Violation { invariant: Invariant::NoPanic, what }));
    Outcome { violations, log }
}

async fn live(seed: u64, options: Options) -> (Vec<Violation>, Vec<String>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let faults = Faults::from_seed(&mut random);
    let has_events = random.u32(0..3) > 0;
    let storm = options.storm.unwrap_or_else(|| Duration::from_secs(random.u64(60..900)));
    let world = World::new(random.u64(..), faults.clone(), options.log);
    world.log(|| format!("seed {seed}, {faults:?}, event stream: {has_events}, storm of {storm:?}"));
    let mut chance = fastrand::Rng::with_seed(seed ^ PINS);
    // Those stand for stories that came before.
    let is_regression = REGRESSIONS.iter().any(|(known, _)| *known == seed);
    let pins = (!is_regression && chance.bool()).then(|| Pins::draw(&mut chance));
    let for_users = pins.is_some().then(|| chance.fork());
    world.log(|| format!("{pins:?}"));
    let machine = Machine::new(world.clone(), has_events, pins.map(|pins| (pins, chance)));
    let mut memory = fastrand::Rng::with_seed(seed ^ FORGETS);
    let forgets = (memory.u32(0..3) == 0).then_some(memory);
    let mut users = Users::new(machine.clone(), random.fork(), forgets, for_users);

    users.storm(storm).await;
    if !world.is_violated() {
        world.log(|| "calm".into());
        world.set_faults(Faults::none());
        machine.runtime.calm();
        machine.cluster.calm();
        if settle(&machine).await {
            rest(&machine).await;
        }
    }
    machine.kill_agent().await;
    (world.violations(), world.take_log())
}

/// Waits until nothing is wrong and nothing more can come; false if that never is so.
async fn settle(machine: &Machine) -> bool {
    let deadline = Instant::now() + SETTLES_WITHIN;
    loop {
        sleep(LOOK_EVERY).await;
        if machine.world.is_violated() {
            return false;
        }
        let complaints = judge::complaints(machine);
        if complaints.is_empty() && !machine.world.has_late_effects() {
            machine.world.log(|| "settled".into());
            return true;
        }
        if Instant::now() > deadline {
            for Violation { invariant, what } in complaints {
                machine.world.violation(invariant, what);
            }
            return false;
        }
    }
}

/// Longer than a runtime call without an answer and the longest grace together.
const LAST_EFFECTS: Duration = Duration::from_secs(200);

/// One rotation is done, and the next is not due.
const ROTATES_WITHIN: Duration = Duration::from_secs(2);

/// Once settled, all stays as it is, by itself.
async fn rest(machine: &Machine) {
    // What was begun under the last fault still has to end: a call that got no answer lasts
    // its whole deadline, a stop its whole grace, an event waits for its turn.
    sleep(LAST_EFFECTS).await;
    machine.runtime.take_changes();
    machine.cluster.take_writes();
    sleep(REST).await;
    let restless = Restless::of(machine);
    let changes = machine.runtime.take_changes();
    for uid in &restless.looping {
        if !changes.iter().any(|(who, what)| who == uid && *what == "StartContainer") {
            machine.world.violation(Invariant::LoopsGoOn, format!("nothing of {uid} was started within {REST:?}"));
        }
    }
    // There is a limit for all that is dead together, and whoever looks next gives up what exceeds it.
    let gave_up: BTreeSet<String> =
        changes.iter().filter(|(_, what)| *what == REMOVE_SURPLUS).map(|(who, _)| who.clone()).collect();
    let is_given_up =
        |(who, what): &(String, &str)| gave_up.contains(who) && [REMOVE_SURPLUS, "RemovePodSandbox"].contains(what);
    let changes = changes.into_iter().filter(|change| !restless.changing.contains(&change.0) && !is_given_up(change));
    let writes = machine.cluster.take_writes().into_iter().filter(|(who, _)| !restless.talking.contains(who));
    for (who, what) in changes.chain(writes) {
        machine.world.violation(Invariant::RestIsRest, format!("{what} of {who}"));
    }
    let mut complaints = judge::complaints(machine);
    // A log that fills all the time is renewed all the time: one look may fall into it.
    if complaints.iter().any(|complaint| complaint.invariant == Invariant::LogsAreBounded) {
        sleep(ROTATES_WITHIN).await;
        let again = judge::complaints(machine);
        complaints.retain(|complaint| complaint.invariant != Invariant::LogsAreBounded || again.contains(complaint));
    }
    for Violation { invariant, what } in complaints {
        machine.world.violation(invariant, what);
    }
}

thread_local! {
    /// Panics on this thread, while it simulates.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

struct Listening;

impl Drop for Listening {
    fn drop(&mut self) {
        PANICS.set(None);
    }
}

/// From here on panics of this thread are kept instead of printed: tokio hands most of them
/// to nobody.
fn listen_for_panics() -> Listening {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_kept =
                PANICS.with_borrow_mut(|panics| panics.as_mut().map(|panics| panics.push(info.to_string())).is_some());
            if !is_kept {
                print(info);
            }
        }));
    });
    PANICS.set(Some(Vec::new()));
    Listening
}

fn panics() -> Vec<String> {
    PANICS.take().unwrap_or_default()
}
