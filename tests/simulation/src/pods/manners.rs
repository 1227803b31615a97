//! Probes and hooks of drawn pods, and the manners of the containers that they ask.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::programs::{Ask, Deed, Exam, Health, Hook, Illness, Manners, Program, port};

/// Gives a container probes and hooks. `slot` says at which ports it listens.
pub fn give(random: &mut fastrand::Rng, container: &mut Container, slot: u16, program: &Program) {
    let mut manners = Manners::default();
    // How one ends that ends by itself is not for probes to say.
    let lasts = matches!(program, Program::Forever | Program::Stubborn | Program::Chatty { .. });
    if lasts && random.u32(0..4) == 0 {
        container.startup_probe = Some(probe(random, slot, Ask::Startup, &mut manners));
    }
    if lasts && random.bool() {
        container.liveness_probe = Some(probe(random, slot, Ask::Liveness, &mut manners));
    }
    if random.bool() {
        container.readiness_probe = Some(probe(random, slot, Ask::Readiness, &mut manners));
    }
    let post_start = (random.u32(0..4) == 0).then(|| hook(random, slot, Ask::PostStart, &mut manners));
    let pre_stop = (random.u32(0..3) == 0).then(|| hook(random, slot, Ask::PreStop, &mut manners));
    if post_start.is_some() || pre_stop.is_some() {
        container.lifecycle = Some(Lifecycle { post_start, pre_stop, ..Lifecycle::default() });
    }
    container.args = Some(manners.to_args()).filter(|args| !args.is_empty());
}

pub fn of(container: &Container) -> Manners {
    Manners::from_args(container.args.as_deref().unwrap_or_default())
}

fn probe(random: &mut fastrand::Rng, slot: u16, ask: Ask, manners: &mut Manners) -> Probe {
    let seconds = |random: &mut fastrand::Rng, range: std::ops::RangeInclusive<u64>| {
        Duration::from_millis(random.u64(range.start() * 1000..=range.end() * 1000))
    };
    let (mut period, mut failures, mut successes) = (random.u64(1..=10), random.u32(1..=4), 1);
    let health = match ask {
        // It clearly passes, or never.
        Ask::Startup => {
            (period, failures) = (random.u64(1..=5), random.u32(2..=6));
            let room = u64::from(failures - 1) * period;
            if random.u32(0..6) == 0 { Health::Never } else { Health::After(seconds(random, 0..=room - 1)) }
        }
        Ask::Liveness => match random.u32(0..8) {
            0 | 1 => Health::Until(seconds(random, 10..=90)),
            _ => Health::Always,
        },
        _ => {
            successes = random.u32(1..=3);
            match random.u32(0..8) {
                0 | 1 => Health::After(seconds(random, 0..=60)),
                2 => Health::Until(seconds(random, 5..=60)),
                3 => Health::Never,
                4 => Health::Flaps(seconds(random, 2..=20)),
                _ => Health::Always,
            }
        }
    };
    let illness = [Illness::SaysNo, Illness::Refuses, Illness::Hangs][random.usize(..3)];
    let timeout = random.u64(1..=3);
    let grace = (ask != Ask::Readiness && random.u32(0..3) == 0).then(|| random.u64(1..=20));
    let exam =
        Exam { ask, health, illness, successes, failures, timeout: Duration::from_secs(timeout), grace_seconds: grace };
    manners.exams.push(exam);
    let number = |value: u64| Some(i32::try_from(value).expect("a small number"));
    let mut probe = Probe {
        initial_delay_seconds: random.bool().then(|| random.i32(0..=5)),
        period_seconds: number(period),
        timeout_seconds: number(timeout),
        success_threshold: number(successes.into()),
        failure_threshold: number(failures.into()),
        termination_grace_period_seconds: grace.map(|grace| i64::try_from(grace).expect("a small number")),
        ..Probe::default()
    };
    let port = port(slot, ask);
    match random.u32(0..4) {
        0 => probe.exec = Some(exec(ask)),
        1 => probe.http_get = Some(get(slot, ask)),
        2 => probe.tcp_socket = Some(TCPSocketAction { port: IntOrString::Int(port.into()), ..Default::default() }),
        _ => probe.grpc = Some(GRPCAction { port: port.into(), service: Some(ask.word().into()) }),
    }
    probe
}

fn hook(random: &mut fastrand::Rng, slot: u16, ask: Ask, manners: &mut Manners) -> LifecycleHandler {
    let way = random.u32(0..3);
    let longest = if ask == Ask::PreStop { 20 } else { 5 };
    let mut hook = Hook {
        ask,
        deed: match random.u32(0..6) {
            0 => Deed::Fails,
            1 => Deed::NeverReturns,
            _ => Deed::Succeeds,
        },
        lasts: Duration::from_millis(random.u64(0..=longest * 1000)),
        is_sleep: way == 2,
        is_exec: way == 0,
    };
    let mut handler = LifecycleHandler::default();
    match way {
        0 => handler.exec = Some(exec(ask)),
        1 => handler.http_get = Some(get(slot, ask)),
        _ => {
            hook.deed = Deed::Succeeds;
            hook.lasts = Duration::from_secs(hook.lasts.as_secs());
            let seconds = i64::try_from(hook.lasts.as_secs()).expect("a small number");
            handler.sleep = Some(SleepAction { seconds });
        }
    }
    manners.hooks.push(hook);
    handler
}

fn exec(ask: Ask) -> ExecAction {
    ExecAction { command: Some(vec!["ask".into(), ask.word().into()]) }
}

fn get(slot: u16, ask: Ask) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(format!("/{}", ask.word())),
        port: IntOrString::Int(port(slot, ask).into()),
        ..HTTPGetAction::default()
    }
}
