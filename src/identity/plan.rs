//! What comes next for the client certificate: a pure decision from what is on disk, the
//! time, and what the operator gave.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;

use super::certificate::Certificate;
use super::request::user;
use crate::clock::{CLOCKS_DIFFER, build};

/// A certificate on disk that can be used, as far as it says itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub path: PathBuf,
    pub leaf: Certificate,
    /// Issued by an authority in the kubeconfig, or where there is none, in that of the bootstrap.
    pub is_of_cluster: bool,
}

/// What is at a place where a certificate should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    Absent {
        path: PathBuf,
    },
    /// Empty, torn, or without the right key.
    Broken {
        path: PathBuf,
        why: String,
    },
    Good(Stored),
}

/// What the kubeconfig says about who we are.
#[derive(Clone, Debug, PartialEq)]
pub enum Kubeconfig {
    Absent {
        path: PathBuf,
    },
    Broken(String),
    /// A token, a password, a program: nothing of ours.
    OtherCredentials,
    /// `kubelet-client-current.pem`.
    Current,
    /// A certificate in the kubeconfig itself or in a file of its own.
    Own(Held),
}

/// Everything the decision looks at.
pub struct View {
    pub now: Timestamp,
    pub built: Timestamp,
    pub node_name: String,
    pub kubeconfig: Kubeconfig,
    /// The kubeconfig holds certificate and key itself.
    pub is_embedded: bool,
    pub current: Held,
    pub finished: Vec<Stored>,
    /// There is a bootstrap kubeconfig, or why there is none.
    pub bootstrap: Result<(), String>,
    /// `rotateCertificates`.
    pub rotates: bool,
}

/// With which credentials a certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    Bootstrap,
    Own,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing that is decided by dates can be decided.
    AwaitClock(ClockDoubt),
    /// Nothing, until then.
    Rest {
        until: Option<Timestamp>,
    },
    /// A finished certificate that an end in between left unused goes into use.
    Adopt {
        path: PathBuf,
    },
    /// The certificate is there, the kubeconfig that leads to it is not.
    WriteKubeconfig,
    /// What the kubeconfig holds goes where certificates of ours are. `kubeadm init` has the
    /// kubeconfig lead there as its last step.
    Extract,
    Obtain {
        with: With,
        why: String,
    },
    /// Somebody has to do something. It is looked at again now and then.
    Stuck(Stuck),
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ClockDoubt {
    #[error("this machine's clock shows {now}, which is before this program was built: waiting for the right time")]
    BeforeBuild { now: Timestamp },
    #[error(
        "this machine's clock shows {now}, and certificate {} is only valid from {not_before} on: waiting for the right time",
        path.display()
    )]
    BeforeCertificate { now: Timestamp, path: PathBuf, not_before: Timestamp },
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what}, and {bootstrap}: this node has no identity until somebody gives it one; its pods go on")]
pub struct Stuck {
    pub what: Fault,
    pub bootstrap: String,
}

/// What is wrong with the certificate that should be used.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Expired { path: PathBuf, not_after: Timestamp },
    Absent { path: PathBuf },
    Broken { path: PathBuf, why: String },
    OtherNode { path: PathBuf, common_name: String },
    NoKubeconfig(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Expired { path, not_after } => {
                write!(f, "client certificate {} expired at {not_after}", path.display())
            }
            Fault::Absent { path } => write!(f, "client certificate {} is missing", path.display()),
            Fault::Broken { path, why } => write!(f, "client certificate {} is unusable: {why}", path.display()),
            Fault::OtherNode { path, common_name } => {
                write!(f, "client certificate {} is that of {common_name}", path.display())
            }
            Fault::NoKubeconfig(why) => f.write_str(why),
        }
    }
}

/// What API connections authenticate with meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    Nothing,
    /// What the kubeconfig says.
    Kubeconfig,
    /// The certificate of ours instead of the one in the kubeconfig.
    Current,
}

impl View {
    /// Even what has expired is used: the API server's clock decides, and ours may be wrong.
    pub fn in_use(&self) -> InUse {
        match (&self.kubeconfig, &self.current) {
            (Kubeconfig::Absent { .. } | Kubeconfig::Broken(_), _) => InUse::Nothing,
            (Kubeconfig::OtherCredentials, _) | (Kubeconfig::Current, Held::Good(_)) => InUse::Kubeconfig,
            (Kubeconfig::Current, _) => InUse::Nothing,
            (Kubeconfig::Own(_), Held::Good(current)) if self.is_successor(current) => InUse::Current,
            (Kubeconfig::Own(Held::Good(_)), _) => InUse::Kubeconfig,
            (Kubeconfig::Own(_), _) => InUse::Nothing,
        }
    }

    /// Whether our current certificate follows the one that the kubeconfig brought. One that is
    /// left from another cluster does not, however long it is valid.
    fn is_successor(&self, current: &Stored) -> bool {
        let follows = match &self.kubeconfig {
            Kubeconfig::Own(Held::Good(own)) => {
                current.leaf.not_after > own.leaf.not_after
                    && (current.leaf.issuer == own.leaf.issuer || current.is_of_cluster)
            }
            _ => true,
        };
        self.rotates && self.is_ours(current) && follows
    }

    /// The certificate whose dates count.
    fn held(&self) -> &Held {
        match (&self.kubeconfig, self.in_use()) {
            (Kubeconfig::Own(own), InUse::Kubeconfig | InUse::Nothing) => own,
            _ => &self.current,
        }
    }

    /// The certificate that connections are made with.
    pub fn leaf_in_use(&self) -> Option<&Certificate> {
        let held = match (self.in_use(), &self.kubeconfig) {
            (InUse::Nothing, _) => return None,
            (InUse::Kubeconfig, Kubeconfig::Own(own)) => own,
            (InUse::Kubeconfig | InUse::Current, _) => &self.current,
        };
        match held {
            Held::Good(stored) => Some(&stored.leaf),
            Held::Absent { .. } | Held::Broken { .. } => None,
        }
    }

    fn is_ours(&self, stored: &Stored) -> bool {
        stored.leaf.common_name == user(&self.node_name)
    }

    fn is_valid(&self, stored: &Stored) -> bool {
        self.now < stored.leaf.not_after && stored.leaf.not_before <= self.now + CLOCKS_DIFFER
    }

    /// A finished certificate that could be used at once, the one that is valid longest.
    fn adoptable(&self, fits: impl Fn(&Stored) -> bool) -> Option<Step> {
        let could = |stored: &&Stored| self.is_ours(stored) && self.is_valid(stored) && fits(stored);
        let best = self.finished.iter().filter(could).max_by_key(|stored| stored.leaf.not_after)?;
        Some(Step::Adopt { path: best.path.clone() })
    }
}

pub fn next(view: &View) -> Step {
    let held = view.held();
    if let Some(doubt) = doubt(view, held) {
        return Step::AwaitClock(doubt);
    }
    match &view.kubeconfig {
        Kubeconfig::OtherCredentials if view.bootstrap.is_err() => Step::Rest { until: None },
        Kubeconfig::OtherCredentials => obtain("the kubeconfig holds no client certificate"),
        Kubeconfig::Absent { path } => introduce(view, format!("there is no kubeconfig {}", path.display())),
        Kubeconfig::Broken(why) => introduce(view, why.clone()),
        Kubeconfig::Current | Kubeconfig::Own(_) => maintain(view, held),
    }
}

fn doubt(view: &View, held: &Held) -> Option<ClockDoubt> {
    let now = view.now;
    if build::is_impossible(now, view.built) {
        return Some(ClockDoubt::BeforeBuild { now });
    }
    let Held::Good(stored) = held else { return None };
    if matches!(view.kubeconfig, Kubeconfig::Absent { .. } | Kubeconfig::Broken(_)) && !stored.is_of_cluster {
        // Left from elsewhere; it will not be used.
        return None;
    }
    let not_before = stored.leaf.not_before;
    (now + CLOCKS_DIFFER < not_before).then(|| ClockDoubt::BeforeCertificate {
        now,
        path: stored.path.clone(),
        not_before,
    })
}

/// Without a kubeconfig a certificate may be left from an end in between, or from a cluster
/// that this node was in before: only what the cluster's authority signed is used.
fn introduce(view: &View, why: String) -> Step {
    if let Err(bootstrap) = &view.bootstrap {
        return Step::Stuck(Stuck { what: Fault::NoKubeconfig(why), bootstrap: bootstrap.clone() });
    }
    match &view.current {
        Held::Good(current) if current.is_of_cluster && view.is_ours(current) && view.is_valid(current) => {
            Step::WriteKubeconfig
        }
        _ => view.adoptable(|stored| stored.is_of_cluster).unwrap_or_else(|| obtain(&why)),
    }
}

fn obtain(why: &str) -> Step {
    Step::Obtain { with: With::Bootstrap, why: why.to_owned() }
}

/// With a kubeconfig and a certificate that it leads to, which may be good or not.
fn maintain(view: &View, held: &Held) -> Step {
    let what = match held {
        Held::Good(stored) if matches!(view.kubeconfig, Kubeconfig::Current) && !view.is_ours(stored) => {
            Fault::OtherNode { path: stored.path.clone(), common_name: stored.leaf.common_name.clone() }
        }
        Held::Good(stored) if view.now < stored.leaf.not_after => return renew(view, stored),
        Held::Good(stored) => Fault::Expired { path: stored.path.clone(), not_after: stored.leaf.not_after },
        Held::Absent { path } => Fault::Absent { path: path.clone() },
        Held::Broken { path, why } => Fault::Broken { path: path.clone(), why: why.clone() },
    };
    let is_used = view.rotates || view.kubeconfig == Kubeconfig::Current;
    let issuer = match held {
        Held::Good(stored) => Some(&stored.leaf.issuer),
        _ => None,
    };
    let of_same_cluster = |stored: &Stored| issuer.is_none_or(|issuer| *issuer == stored.leaf.issuer);
    if is_used && let Some(adopt) = view.adoptable(of_same_cluster) {
        return adopt;
    }
    match &view.bootstrap {
        Ok(()) => obtain(&what.to_string()),
        Err(bootstrap) => Step::Stuck(Stuck { what, bootstrap: bootstrap.clone() }),
    }
}

/// With a certificate that is valid now.
fn renew(view: &View, stored: &Stored) -> Step {
    if !view.rotates {
        return Step::Rest { until: Some(stored.leaf.not_after) };
    }
    if view.is_embedded && view.is_ours(stored) && matches!(view.current, Held::Absent { .. }) {
        return Step::Extract;
    }
    let renew_at = stored.leaf.renew_at();
    if view.now < renew_at {
        return Step::Rest { until: Some(renew_at) };
    }
    let follows = |next: &Stored| next.leaf.not_after > stored.leaf.not_after && next.leaf.issuer == stored.leaf.issuer;
    view.adoptable(follows).unwrap_or_else(|| Step::Obtain {
        with: With::Own,
        why: format!("{} expires at {}", stored.path.display(), stored.leaf.not_after),
    })
}
