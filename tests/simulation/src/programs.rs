//! What containers do, as their commands and arguments say: so a spec carries it, through
//! the agent, to the simulated runtime.

use std::time::Duration;

/// What a container does, as its command says.
#[derive(Clone, Debug, PartialEq)]
pub enum Program {
    /// Runs until told to end.
    Forever,
    /// As that, and says a line now and then.
    Chatty { every: Duration },
    /// Runs until killed: SIGTERM means nothing to it.
    Stubborn,
    /// Ends by itself.
    Exits { code: i32, after: Duration },
    /// Ends by itself with a code for which all containers of its pod begin anew: so many times,
    /// and then runs until told to end. With 0 it never stays.
    RestartsAll { after: Duration, times: u32 },
    /// Cannot be started at all.
    Broken,
}

/// The exit code by which all containers of a pod begin anew, where a rule says so.
pub const RESTART_ALL_CODE: i32 = 88;

impl Program {
    pub fn to_command(&self) -> Vec<String> {
        match self {
            Program::Forever => vec!["forever".into()],
            Program::Stubborn => vec!["stubborn".into()],
            Program::Chatty { every } => vec!["say".into(), every.as_millis().to_string()],
            Program::Exits { code, after } => vec!["exit".into(), code.to_string(), after.as_millis().to_string()],
            Program::RestartsAll { after, times } => {
                vec!["restart-all".into(), after.as_millis().to_string(), times.to_string()]
            }
            Program::Broken => vec!["broken".into()],
        }
    }

    pub fn from_command(command: &[String]) -> Self {
        match command.first().map(String::as_str) {
            Some("stubborn") => Program::Stubborn,
            Some("broken") => Program::Broken,
            Some("say") => {
                Program::Chatty { every: Duration::from_millis(command[1].parse().expect("written by to_command")) }
            }
            Some("exit") => Program::Exits {
                code: command[1].parse().expect("written by to_command"),
                after: Duration::from_millis(command[2].parse().expect("written by to_command")),
            },
            Some("restart-all") => Program::RestartsAll {
                after: Duration::from_millis(command[1].parse().expect("written by to_command")),
                times: command[2].parse().expect("written by to_command"),
            },
            _ => Program::Forever,
        }
    }
}

/// What the agent may ask of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    Startup,
    Liveness,
    Readiness,
    PostStart,
    PreStop,
}

impl Ask {
    pub const ALL: [Ask; 5] = [Ask::Startup, Ask::Liveness, Ask::Readiness, Ask::PostStart, Ask::PreStop];

    /// As it stands in a path, a command, and a service's name.
    pub fn word(self) -> &'static str {
        match self {
            Ask::Startup => "startup",
            Ask::Liveness => "liveness",
            Ask::Readiness => "readiness",
            Ask::PostStart => "postStart",
            Ask::PreStop => "preStop",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Ask::ALL.into_iter().find(|ask| ask.word() == word)
    }

    pub fn is_hook(self) -> bool {
        matches!(self, Ask::PostStart | Ask::PreStop)
    }
}

/// The port on which container number `slot` of a pod answers this.
pub fn port(slot: u16, ask: Ask) -> u16 {
    FIRST_PORT + slot * Ask::ALL.len() as u16 + ask as u16
}

/// What is asked at a port, and of the how manieth container.
pub fn at_port(port: u16) -> Option<(u16, Ask)> {
    let number = port.checked_sub(FIRST_PORT)?;
    let count = Ask::ALL.len() as u16;
    Some((number / count, Ask::ALL[usize::from(number % count)]))
}

const FIRST_PORT: u16 = 8000;

/// How a container does over its life, in the eyes of one of its probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Always,
    /// From this long after its start.
    After(Duration),
    /// Until this long after its start.
    Until(Duration),
    /// In turn, for so long each, well first.
    Flaps(Duration),
    Never,
}

impl Health {
    pub fn is_well_after(self, lasted: Duration) -> bool {
        match self {
            Health::Always => true,
            Health::After(begin) => lasted >= begin,
            Health::Until(end) => lasted < end,
            Health::Flaps(each) => (lasted.as_millis() / each.as_millis().max(1)).is_multiple_of(2),
            Health::Never => false,
        }
    }

    /// How it does after long enough; `None` if that changes for ever.
    pub fn in_the_end(self) -> Option<bool> {
        match self {
            Health::Always | Health::After(_) => Some(true),
            Health::Until(_) | Health::Never => Some(false),
            Health::Flaps(_) => None,
        }
    }
}

/// How a container shows that it is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    SaysNo,
    /// The connection is refused.
    Refuses,
    /// Nothing comes back, however long one waits.
    Hangs,
}

/// A probe, from the side of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exam {
    pub ask: Ask,
    pub health: Health,
    pub illness: Illness,
    pub successes: u32,
    pub failures: u32,
    /// After which the agent takes a silence for a failure.
    pub timeout: Duration,
    /// The probe's own grace.
    pub grace_seconds: Option<u64>,
}

/// What a hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Succeeds,
    Fails,
    NeverReturns,
}

/// A hook, from the side of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub ask: Ask,
    pub deed: Deed,
    pub lasts: Duration,
    /// Nobody is asked: the agent sleeps so long.
    pub is_sleep: bool,
    pub is_exec: bool,
}

/// Everything the agent may ask of one container, as its arguments say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manners {
    pub exams: Vec<Exam>,
    pub hooks: Vec<Hook>,
    /// The signal it wishes to be told to end by.
    pub stop_signal: Option<String>,
}

impl Manners {
    pub fn exam(&self, ask: Ask) -> Option<&Exam> {
        self.exams.iter().find(|exam| exam.ask == ask)
    }

    pub fn hook(&self, ask: Ask) -> Option<&Hook> {
        self.hooks.iter().find(|hook| hook.ask == ask)
    }

    pub fn to_args(&self) -> Vec<String> {
        let exams = self.exams.iter().map(|exam| {
            let (health, time) = match exam.health {
                Health::Always => ("always", Duration::ZERO),
                Health::After(time) => ("after", time),
                Health::Until(time) => ("until", time),
                Health::Flaps(time) => ("flaps", time),
                Health::Never => ("never", Duration::ZERO),
            };
            let illness = match exam.illness {
                Illness::SaysNo => "no",
                Illness::Refuses => "refuses",
                Illness::Hangs => "hangs",
            };
            let Exam { ask, successes, failures, timeout, grace_seconds, .. } = exam;
            let grace = grace_seconds.map_or("-".to_owned(), |grace| grace.to_string());
            let (time, timeout) = (time.as_millis(), timeout.as_secs());
            format!("{}.{health}.{time}.{illness}.{successes}.{failures}.{timeout}.{grace}", ask.word())
        });
        let hooks = self.hooks.iter().map(|hook| {
            let deed = match hook.deed {
                Deed::Succeeds => "succeeds",
                Deed::Fails => "fails",
                Deed::NeverReturns => "hangs",
            };
            let way = match (hook.is_sleep, hook.is_exec) {
                (true, _) => "sleep",
                (false, true) => "exec",
                (false, false) => "http",
            };
            format!("{}.{deed}.{}.{way}", hook.ask.word(), hook.lasts.as_millis())
        });
        exams.chain(hooks).chain(self.stop_signal.as_deref().map(Manners::of_signal)).collect()
    }

    pub fn of_signal(signal: &str) -> String {
        format!("signal.{signal}")
    }

    pub fn from_args(args: &[String]) -> Self {
        let mut manners = Manners::default();
        for arg in args {
            let parts: Vec<&str> = arg.split('.').collect();
            match parts.as_slice() {
                [ask, health, time, illness, successes, failures, timeout, grace] => {
                    let time = Duration::from_millis(time.parse().expect(WRITTEN));
                    manners.exams.push(Exam {
                        ask: Ask::from_word(ask).expect(WRITTEN),
                        health: match *health {
                            "always" => Health::Always,
                            "after" => Health::After(time),
                            "until" => Health::Until(time),
                            "flaps" => Health::Flaps(time),
                            _ => Health::Never,
                        },
                        illness: match *illness {
                            "no" => Illness::SaysNo,
                            "refuses" => Illness::Refuses,
                            _ => Illness::Hangs,
                        },
                        successes: successes.parse().expect(WRITTEN),
                        failures: failures.parse().expect(WRITTEN),
                        timeout: Duration::from_secs(timeout.parse().expect(WRITTEN)),
                        grace_seconds: grace.parse().ok(),
                    });
                }
                [ask, deed, lasts, way] => manners.hooks.push(Hook {
                    ask: Ask::from_word(ask).expect(WRITTEN),
                    deed: match *deed {
                        "succeeds" => Deed::Succeeds,
                        "fails" => Deed::Fails,
                        _ => Deed::NeverReturns,
                    },
                    lasts: Duration::from_millis(lasts.parse().expect(WRITTEN)),
                    is_sleep: *way == "sleep",
                    is_exec: *way == "exec",
                }),
                ["signal", signal] => manners.stop_signal = Some((*signal).to_owned()),
                _ => {}
            }
        }
        manners
    }
}

const WRITTEN: &str = "written by to_args";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manners_survive_their_way_through_the_agent() {
        let exam = |ask, health, illness, grace_seconds| Exam {
            ask,
            health,
            illness,
            successes: 2,
            failures: 3,
            timeout: Duration::from_secs(4),
            grace_seconds,
        };
        let hook =
            |ask, deed, is_sleep, is_exec| Hook { ask, deed, lasts: Duration::from_millis(5), is_sleep, is_exec };
        let manners = Manners {
            exams: vec![
                exam(Ask::Startup, Health::Never, Illness::SaysNo, None),
                exam(Ask::Liveness, Health::Flaps(Duration::from_secs(6)), Illness::Refuses, Some(7)),
                exam(Ask::Readiness, Health::After(Duration::from_secs(8)), Illness::Hangs, None),
            ],
            hooks: vec![
                hook(Ask::PostStart, Deed::Fails, false, true),
                hook(Ask::PreStop, Deed::NeverReturns, false, false),
                hook(Ask::PreStop, Deed::Succeeds, true, false),
            ],
            stop_signal: Some("SIGRTMIN+2".into()),
        };
        assert_eq!(Manners::from_args(&manners.to_args()), manners);
    }

    #[test]
    fn ports_tell_what_is_asked_of_whom() {
        for (slot, ask) in [0, 1, 50].into_iter().flat_map(|slot| Ask::ALL.map(|ask| (slot, ask))) {
            assert_eq!(at_port(port(slot, ask)), Some((slot, ask)));
        }
        assert_eq!(at_port(80), None);
    }
}
