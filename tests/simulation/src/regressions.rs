//! Seeds that once failed, each with the name of its bug. They are run before all others.
//!
//! A seed stands for its story only as long as the simulation draws the same from it; after
//! a change to the drawing it is a seed like any other, and costs as little.

pub const REGRESSIONS: [(u64, &str); 29] = [
    (78, "a static pod put back while its first life ends shares its mirror"),
    (84, "a pod ended by its deadline between two runs is told to have succeeded"),
    (154, "a back-off is stretched by a wall clock that jumped back"),
    (298, "a pod is not started again after the storm"),
    (300, "a static pod put back while its first life ends shares its mirror"),
    (369, "a pod ended by its deadline between two runs is told to have succeeded"),
    (534, "a liveness probe that answers well makes of a guessed readiness a fact"),
    (678, "a volume whose refresh failed once stayed old"),
    (812, "a static pod starts beside an orphan of its name that could not be read"),
    (871, "the log link of an orphan whose names are lost stays, once there is a log in its place"),
    (2510, "a static pod put back while the agent was dead goes on with the mirror of its ended life"),
    (2638, "a container started by a call that was given up is removed while it runs"),
    (2648, "a static pod put back while it ends as an orphan is never started"),
    (2661, "a read taken in the middle of a round of actions is believed after it"),
    (5330, "a static pod put back while it ends as an orphan is never started"),
    (79_891, "what a given-up call made late lives on in a pod that has ended"),
    (120_443, "a container resumed in the round in which its postStart hook fails gets no preStop hook"),
    (120_529, "a container resumed in the round in which its postStart hook fails gets no preStop hook"),
    (120_613, "a container resumed in the round in which its postStart hook fails gets no preStop hook"),
    (120_929, "a wish that comes in the middle of a pass is lost"),
    (122_479, "a container resumed in the round in which its postStart hook fails gets no preStop hook"),
    (122_817, "a stop that is tried again gives its preStop hook a whole grace again"),
    (122_905, "a wall clock set back over the end of a pod hides its deadline from the next life"),
    (700_006, "a container begins at attempt 0 again because its logs could not be listed"),
    (700_064, "a container begins at attempt 0 again because its logs could not be listed"),
    (903_040, "a pod refused for the CPU of pods whose end nobody saw is taken for one that goes on"),
    (940_662, "a sandbox made late, while the API server is away, outlives the last look at its pod"),
    (941_633, "a readiness probe that answers makes of a guessed start a fact"),
    (658_091_128_171, "the last look falls into the rotation of a log"),
];
