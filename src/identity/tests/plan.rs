//! The decision about the client certificate, state by state.

use jiff::{SignedDuration, Timestamp};

use super::world::{HOUR, NODE, USER};
use crate::identity::certificate::{Certificate, Issuer};
use crate::identity::plan::{Held, InUse, Kubeconfig, Step, Stored, View, next};

fn time(text: &str) -> Timestamp {
    text.parse().expect("it is a time")
}

fn noon() -> Timestamp {
    time("2026-03-01T12:00:00Z")
}

/// A certificate that began so long ago, of a day's life. The digest puts its renewal at 80 %.
fn stored(name: &str, ago: SignedDuration) -> Stored {
    let mut digest = [0; 32];
    digest[0] = 0x80;
    let leaf = Certificate {
        not_before: noon() - ago,
        not_after: noon() - ago + HOUR * 24,
        common_name: USER.to_owned(),
        names: [].into(),
        addresses: [].into(),
        issuer: Issuer { name: b"cluster".to_vec(), key_id: Some(vec![1]) },
        digest,
    };
    Stored { path: format!("/pki/{name}").into(), leaf, is_of_cluster: true }
}

fn good(ago: SignedDuration) -> Held {
    Held::Good(stored("current", ago))
}

fn absent() -> Held {
    Held::Absent { path: "/pki/current".into() }
}

/// A node that rotates, with a kubeconfig that leads to our certificate, and a bootstrap one.
fn view(current: Held) -> View {
    View {
        now: noon(),
        built: time("2026-01-01T00:00:00Z"),
        node_name: NODE.to_owned(),
        kubeconfig: Kubeconfig::Current,
        is_embedded: false,
        current,
        finished: Vec::new(),
        bootstrap: Ok(()),
        rotates: true,
    }
}

/// The next step in a few words, and what is in use meanwhile.
#[track_caller]
fn check(view: &View, expected: &str, in_use: InUse) {
    let text = match next(view) {
        Step::AwaitClock(doubt) => doubt.to_string(),
        Step::Rest { until: Some(until) } => format!("rest until {until}"),
        Step::Rest { until: None } => "rest".to_owned(),
        Step::Adopt { path } => format!("adopt {}", path.display()),
        Step::WriteKubeconfig => "write kubeconfig".to_owned(),
        Step::Extract => "extract".to_owned(),
        Step::Obtain { with, why } => format!("obtain with {with:?}: {why}"),
        Step::Stuck(stuck) => stuck.to_string(),
    };
    assert_eq!((text.as_str(), view.in_use()), (expected, in_use));
}

const NO_BOOTSTRAP: &str = "no --bootstrap-kubeconfig is given";

#[test]
fn a_good_certificate_rests_until_it_is_due() {
    check(&view(good(HOUR)), "rest until 2026-03-02T06:12:00Z", InUse::Kubeconfig);
    check(&View { rotates: false, ..view(good(HOUR)) }, "rest until 2026-03-02T11:00:00Z", InUse::Kubeconfig);
}

#[test]
fn a_due_one_is_renewed_with_itself_or_by_what_lies_there() {
    let due = view(good(HOUR * 20));
    check(&due, "obtain with Own: /pki/current expires at 2026-03-01T16:00:00Z", InUse::Kubeconfig);
    let finished = vec![stored("next", HOUR), stored("older", HOUR * 21)];
    check(&View { finished, ..view(good(HOUR * 20)) }, "adopt /pki/next", InUse::Kubeconfig);
}

#[test]
fn one_that_expired_is_replaced_by_whatever_way_there_is() {
    let why = "client certificate /pki/current expired at 2026-02-28T14:00:00Z";
    let expired = || good(HOUR * 46);
    check(&view(expired()), &format!("obtain with Bootstrap: {why}"), InUse::Kubeconfig);
    let finished = vec![stored("next", HOUR)];
    check(&View { finished, ..view(expired()) }, "adopt /pki/next", InUse::Kubeconfig);
    let mut foreign = stored("next", HOUR);
    foreign.leaf.issuer.key_id = Some(vec![2]);
    let foreign = View { finished: vec![foreign], ..view(expired()) };
    check(&foreign, &format!("obtain with Bootstrap: {why}"), InUse::Kubeconfig);
    let bootstrap = Err(NO_BOOTSTRAP.to_owned());
    let stuck =
        format!("{why}, and {NO_BOOTSTRAP}: this node has no identity until somebody gives it one; its pods go on");
    check(&View { bootstrap, ..view(expired()) }, &stuck, InUse::Kubeconfig);
}

#[test]
fn what_cannot_be_used_is_named() {
    let stuck = |what: &str| {
        format!("{what}, and {NO_BOOTSTRAP}: this node has no identity until somebody gives it one; its pods go on")
    };
    let without = |held| View { bootstrap: Err(NO_BOOTSTRAP.to_owned()), ..view(held) };
    let empty = || Held::Broken { path: "/pki/current".into(), why: "it is empty".into() };
    check(&without(absent()), &stuck("client certificate /pki/current is missing"), InUse::Nothing);
    check(&without(empty()), &stuck("client certificate /pki/current is unusable: it is empty"), InUse::Nothing);
    let mut others = stored("current", HOUR);
    others.leaf.common_name = "system:node:other".to_owned();
    let text = stuck("client certificate /pki/current is that of system:node:other");
    check(&without(Held::Good(others)), &text, InUse::Kubeconfig);
    let broken = View { kubeconfig: Kubeconfig::Broken("it is half there".into()), ..without(absent()) };
    check(&broken, &stuck("it is half there"), InUse::Nothing);
    check(
        &view(empty()),
        "obtain with Bootstrap: client certificate /pki/current is unusable: it is empty",
        InUse::Nothing,
    );
}

#[test]
fn without_a_kubeconfig_only_the_clusters_own_certificates_count() {
    let fresh = |current| View { kubeconfig: Kubeconfig::Absent { path: "/kubeconfig".into() }, ..view(current) };
    check(&fresh(absent()), "obtain with Bootstrap: there is no kubeconfig /kubeconfig", InUse::Nothing);
    check(&fresh(good(HOUR)), "write kubeconfig", InUse::Nothing);
    let foreign = Held::Good(Stored { is_of_cluster: false, ..stored("current", HOUR) });
    check(&fresh(foreign), "obtain with Bootstrap: there is no kubeconfig /kubeconfig", InUse::Nothing);
    check(&fresh(good(HOUR * 30)), "obtain with Bootstrap: there is no kubeconfig /kubeconfig", InUse::Nothing);
    check(&View { finished: vec![stored("next", HOUR)], ..fresh(absent()) }, "adopt /pki/next", InUse::Nothing);
}

#[test]
fn a_certificate_in_the_kubeconfig_counts_until_there_is_a_later_one() {
    let own = |ago| Kubeconfig::Own(Held::Good(Stored { path: "/own".into(), ..stored("own", ago) }));
    let with = |kubeconfig, current| View { kubeconfig, ..view(current) };
    check(&with(own(HOUR), absent()), "rest until 2026-03-02T06:12:00Z", InUse::Kubeconfig);
    check(&with(own(HOUR * 20), absent()), "obtain with Own: /own expires at 2026-03-01T16:00:00Z", InUse::Kubeconfig);
    check(&with(own(HOUR * 20), good(HOUR)), "rest until 2026-03-02T06:12:00Z", InUse::Current);
    check(&with(own(HOUR), good(HOUR * 20)), "rest until 2026-03-02T06:12:00Z", InUse::Kubeconfig);
    let unmanaged = View { rotates: false, ..with(own(HOUR), good(HOUR)) };
    check(&unmanaged, "rest until 2026-03-02T11:00:00Z", InUse::Kubeconfig);
    let missing = Kubeconfig::Own(Held::Absent { path: "/own".into() });
    check(&with(missing, good(HOUR)), "rest until 2026-03-02T06:12:00Z", InUse::Current);
}

#[test]
fn what_another_cluster_left_follows_nothing() {
    let own = Kubeconfig::Own(Held::Good(Stored { path: "/own".into(), ..stored("own", HOUR * 2) }));
    let mut left = stored("current", HOUR);
    left.leaf.issuer.key_id = Some(vec![2]);
    left.is_of_cluster = false;
    let foreign = View { kubeconfig: own.clone(), ..view(Held::Good(left.clone())) };
    check(&foreign, "rest until 2026-03-02T05:12:00Z", InUse::Kubeconfig);
    // The cluster's authority may have a new key, which the kubeconfig then knows.
    left.is_of_cluster = true;
    let rotated = View { kubeconfig: own, ..view(Held::Good(left)) };
    check(&rotated, "rest until 2026-03-02T06:12:00Z", InUse::Current);
}

#[test]
fn what_the_kubeconfig_holds_is_kept_with_ours_once() {
    let own = |ago| Kubeconfig::Own(Held::Good(Stored { path: "/own".into(), ..stored("own", ago) }));
    let embedded = |current| View { kubeconfig: own(HOUR), is_embedded: true, ..view(current) };
    check(&embedded(absent()), "extract", InUse::Kubeconfig);
    check(&embedded(good(HOUR)), "rest until 2026-03-02T06:12:00Z", InUse::Kubeconfig);
    check(&View { rotates: false, ..embedded(absent()) }, "rest until 2026-03-02T11:00:00Z", InUse::Kubeconfig);
    let in_file = View { is_embedded: false, ..embedded(absent()) };
    check(&in_file, "rest until 2026-03-02T06:12:00Z", InUse::Kubeconfig);
    let mut others = stored("own", HOUR);
    others.leaf.common_name = "admin".to_owned();
    let others = View { kubeconfig: Kubeconfig::Own(Held::Good(others)), ..embedded(absent()) };
    check(&others, "rest until 2026-03-02T06:12:00Z", InUse::Kubeconfig);
}

#[test]
fn other_credentials_give_way_to_a_bootstrap_and_else_are_left_alone() {
    let other = View { kubeconfig: Kubeconfig::OtherCredentials, ..view(absent()) };
    check(&other, "obtain with Bootstrap: the kubeconfig holds no client certificate", InUse::Kubeconfig);
    check(&View { bootstrap: Err(NO_BOOTSTRAP.to_owned()), ..other }, "rest", InUse::Kubeconfig);
}

#[test]
fn a_clock_that_must_be_wrong_is_named() {
    let early = "this machine's clock shows 1970-01-01T00:00:10Z, which is before this program was built: \
                 waiting for the right time";
    let at = |now: &str, current| View { now: time(now), ..view(current) };
    for current in [absent(), good(HOUR), good(HOUR * 46)] {
        let in_use = if current == absent() { InUse::Nothing } else { InUse::Kubeconfig };
        check(&at("1970-01-01T00:00:10Z", current), early, in_use);
    }
    let before = "this machine's clock shows 2026-02-01T00:00:00Z, and certificate /pki/current is only valid from \
                  2026-03-01T11:00:00Z on: waiting for the right time";
    check(&at("2026-02-01T00:00:00Z", good(HOUR)), before, InUse::Kubeconfig);
    let foreign = Held::Good(Stored { is_of_cluster: false, ..stored("current", HOUR) });
    let left_over =
        View { kubeconfig: Kubeconfig::Absent { path: "/kubeconfig".into() }, ..at("2026-02-01T00:00:00Z", foreign) };
    check(&left_over, "obtain with Bootstrap: there is no kubeconfig /kubeconfig", InUse::Nothing);
}
