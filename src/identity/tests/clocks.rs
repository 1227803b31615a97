//! A clock that is wrong: nothing is decided, nothing is lost, and it goes on by itself.

use jiff::SignedDuration;

use super::world::{Answer, HOUR, World, settle};
use crate::identity::client::Pause;
use crate::identity::{LOOK_AGAIN, rest};

const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

#[tokio::test(start_paused = true)]
async fn a_clock_without_a_battery_is_waited_for() {
    let world = World::fresh();
    world.answer([Answer::Sign(YEAR)]);
    world.clock.step_wall(YEAR * -30);
    let mut identity = world.identity(true);
    assert_eq!(settle(&mut identity).await.expect("it waits"), Pause::For(LOOK_AGAIN));
    assert_eq!(world.told(), Vec::<String>::new());
    world.clock.step_wall(YEAR * 30);
    settle(&mut identity).await.expect("the request is signed");
    assert_eq!(world.told(), ["bootstrap asks", "take up kubeconfig"]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_from_the_future_says_that_the_clock_is_wrong() {
    let world = World::fresh();
    world.give_kubeconfig();
    world.give_certificate(HOUR * -1, YEAR);
    let mut identity = world.identity(true);
    assert_eq!(settle(&mut identity).await.expect("it waits"), Pause::For(LOOK_AGAIN));
    assert_eq!(world.told(), ["take up kubeconfig"], "it is used all the same, the API server's clock decides");
    world.clock.step_wall(HOUR);
    assert!(matches!(settle(&mut identity).await, Ok(Pause::Until(Some(_)))));
    assert_eq!(world.requests().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn clocks_of_one_cluster_may_differ_by_minutes() {
    let world = World::fresh();
    world.give_kubeconfig();
    world.give_certificate(SignedDuration::from_mins(-4), YEAR);
    assert!(matches!(settle(&mut world.identity(true)).await, Ok(Pause::Until(Some(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_runs_ahead_throws_nothing_away() {
    let world = World::new();
    world.give_kubeconfig();
    world.give_certificate(HOUR, YEAR);
    world.clock.step_wall(YEAR * 20);
    let mut identity = world.identity(true);
    assert_eq!(settle(&mut identity).await.expect("somebody has to do something"), Pause::For(LOOK_AGAIN));
    world.clock.step_wall(YEAR * -20);
    assert!(matches!(settle(&mut identity).await, Ok(Pause::Until(Some(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_rest_ends_at_its_time_or_when_the_clock_jumps() {
    let world = World::new();
    let clock = world.clock.clone();
    let until = clock.wall() + HOUR * 5;
    rest(&clock, Some(until)).await;
    assert!(clock.wall() >= until && clock.wall() < until + SignedDuration::from_secs(1));

    let (start, far) = (clock.now(), clock.wall() + YEAR);
    let jumping = clock.clone();
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(90)).await;
        jumping.step_wall(YEAR * 2);
    });
    rest(&clock, Some(far)).await;
    assert!(start.elapsed() <= std::time::Duration::from_secs(121), "{:?}", start.elapsed());
}
