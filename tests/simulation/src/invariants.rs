//! What must hold, each in one sentence. Where it is watched is said beside it.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    // Watched by the simulated edges, at the moment it would be broken.
    OneLiveInstance,
    OneOfAName,
    UntouchedIsNotStopped,
    StoppedBeforeRemoved,
    InitBeforeRegular,
    SidecarsStartFirst,
    SidecarsStopLast,
    NothingTakenFromARunningContainer,
    MountsAreThere,
    NoLineIsLost,
    UsersApart,
    ProbesNeedTheirThreshold,
    GracesAreKept,
    PreStopFirst,
    PostStartFirst,
    HooksRunOnce,
    RestartsOfAllAreWhole,
    DebuggersRunOnce,
    OverIsOver,
    StopSignalsArrive,
    OthersHaveTheirSay,
    RefusedForCause,
    PodsBoundTheirContainers,
    TerminalStays,
    TerminalIsAtRest,
    StatusesStay,
    RestartCountsGrow,
    StartTimeStays,
    OnlyTheDoomedAreDeleted,
    GoneFromTheNodeFirst,
    NoPanic,
    NoSpinning,

    // Watched by the judge, once faults have stopped.
    DeletedPodsGo,
    NothingIsLeft,
    PodsAreAsTheySay,
    StatusTellsTheTruth,
    TerminalHoldsNothing,
    VolumesAreCurrent,
    LogsAreBounded,
    LogsAreLinked,
    AllocationsFit,
    AllocationsAreActual,
    CpusOfTheirOwn,
    OthersShareTheRest,
    WishesAreAnswered,
    OneMirrorEach,
    LoopsGoOn,
    NodeIsReady,
    RestIsRest,
}

impl Invariant {
    pub fn sentence(self) -> &'static str {
        match self {
            Invariant::OneLiveInstance => "no container ever has two live instances",
            Invariant::OneOfAName => "no two static pods of one name run at once",
            Invariant::UntouchedIsNotStopped => "a pod nobody touched is never stopped",
            Invariant::StoppedBeforeRemoved => "nothing is removed while a container runs in it",
            Invariant::InitBeforeRegular => {
                "a regular container starts only after every init container of its sandbox ended well"
            }
            Invariant::SidecarsStartFirst => "what a pod is for starts only once its sidecars have started",
            Invariant::SidecarsStopLast => "a sidecar is stopped only once nothing that it serves runs",
            Invariant::NothingTakenFromARunningContainer => "volumes and cgroup stay while a container of the pod runs",
            Invariant::MountsAreThere => "what a container mounts is there when it is made",
            Invariant::NoLineIsLost => "what a running container says goes to a file that has a name",
            Invariant::UsersApart => "no two pods have the same user ids, and a pod keeps those of its sandbox",
            Invariant::ProbesNeedTheirThreshold => {
                "a container is ready, started, not ready, or killed for a probe after as many answers as the probe says"
            }
            Invariant::GracesAreKept => {
                "a container has the grace of its pod, or of the probe that gave it up, less what its hook took, and two \
                 seconds at least"
            }
            Invariant::PreStopFirst => "a container is stopped after its preStop hook, or after its grace",
            Invariant::PostStartFirst => "nothing starts in a pod before the postStart hook of what started before it",
            Invariant::HooksRunOnce => "a hook runs once, unless the agent dies over it",
            Invariant::RestartsOfAllAreWhole => {
                "where one container restarts all, it starts again only once every other one was removed"
            }
            Invariant::DebuggersRunOnce => "a container that was added for debugging is started once, and never again",
            Invariant::OverIsOver => {
                "nothing starts in a pod that was told to have ended, nor again what was told to run and is never restarted"
            }
            Invariant::StopSignalsArrive => "a container is told to end by the signal it wishes for",
            Invariant::OthersHaveTheirSay => "the agent writes no condition that is for others to write",
            Invariant::RefusedForCause => "a pod is refused for want of what there is no more of",
            Invariant::LoopsGoOn => "what fails and is to be restarted is restarted, within the longest back-off",
            Invariant::LogsAreBounded => {
                "a running container has a log of its own name, within the limit, and no more rotated ones than allowed"
            }
            Invariant::LogsAreLinked => "a link leads from the directory of all logs to that of a running container",
            Invariant::PodsBoundTheirContainers => "a pod may use as much memory as any of its containers",
            Invariant::AllocationsFit => "what is allocated to pods is there",
            Invariant::AllocationsAreActual => "containers and their pod's cgroup have what is allocated to them",
            Invariant::CpusOfTheirOwn => "who asks for whole CPUs has as many alone, and none that is reserved",
            Invariant::OthersShareTheRest => "all others run on the CPUs that belong to nobody, and on all of these",
            Invariant::WishesAreAnswered => {
                "a pod has the resources it wishes for, or is told to wait and there is no room"
            }
            Invariant::TerminalStays => "a terminal phase never goes back",
            Invariant::TerminalIsAtRest => "a terminal phase is told only once nothing of the pod runs",
            Invariant::StatusesStay => "a container that had a status keeps one",
            Invariant::RestartCountsGrow => "a restart count never falls",
            Invariant::StartTimeStays => "a pod's start time never changes",
            Invariant::OnlyTheDoomedAreDeleted => "the agent deletes only pods that somebody wished away",
            Invariant::GoneFromTheNodeFirst => "a pod leaves the API only once nothing of it is left on the node",
            Invariant::NoPanic => "the agent never panics",
            Invariant::NoSpinning => "the agent never spins",
            Invariant::DeletedPodsGo => "a deleted pod leaves the API",
            Invariant::NothingIsLeft => "of a pod that is gone nothing is left",
            Invariant::PodsAreAsTheySay => "every container is as its spec, its program and its policy say",
            Invariant::StatusTellsTheTruth => "the status in the API is what the node has",
            Invariant::TerminalHoldsNothing => "a pod that has ended holds no volume, cgroup, or living sandbox",
            Invariant::VolumesAreCurrent => {
                "a volume shows the newest version of what it is made of, and tokens that are good"
            }
            Invariant::OneMirrorEach => "every living static pod has one mirror, and nothing else has",
            Invariant::NodeIsReady => "the Node is there and Ready, and its Lease is renewed",
            Invariant::RestIsRest => "where nothing happens, nothing is changed and nothing is written",
        }
    }
}

/// An invariant that was broken, and by what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub invariant: Invariant,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.sentence(), self.what)
    }
}
