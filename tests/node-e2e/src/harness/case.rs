//! A case: a name, the story, and what it needs.

use anyhow::Result;
use futures::future::LocalBoxFuture;

use super::{Lab, Node};

/// What is told, and on which kind of stack.
#[derive(Clone, Copy)]
pub enum Story {
    /// On the node that all such cases share, each in a namespace of its own, several at once.
    Shared(fn(Node) -> LocalBoxFuture<'static, Result<()>>),
    /// On stacks the case makes itself, to break what it likes.
    Own(fn(Lab) -> LocalBoxFuture<'static, Result<()>>),
}

#[derive(Clone, Copy)]
pub struct Case {
    /// `theme::story`, from the function's path.
    pub name: &'static str,
    pub story: Story,
    /// Why upstream's kubelet cannot pass it.
    pub beyond_upstream: Option<&'static str>,
    /// Whether it is in the chosen few that also run on the old containerd.
    pub in_subset: bool,
    /// Whether it does without a control plane.
    pub standalone: bool,
    /// Whether it needs a runtime that can give pods users of their own.
    pub maps_users: bool,
}

impl Case {
    pub const fn new(name: &'static str, story: Story) -> Case {
        Case { name, story, beyond_upstream: None, in_subset: false, standalone: false, maps_users: false }
    }

    pub const fn beyond_upstream(mut self, why: &'static str) -> Case {
        self.beyond_upstream = Some(why);
        self
    }

    pub const fn in_subset(mut self) -> Case {
        self.in_subset = true;
        self
    }

    pub const fn standalone(mut self) -> Case {
        self.standalone = true;
        self
    }

    pub const fn maps_users(mut self) -> Case {
        self.maps_users = true;
        self
    }

    /// The name without the path of the modules that all cases have in common.
    pub fn short_name(&self) -> &'static str {
        self.name.split_once("::cases::").map_or(self.name, |(_, name)| name)
    }
}

/// A case on the shared node, from an `async fn(Node) -> Result<()>`.
#[macro_export]
macro_rules! shared {
    ($story:ident) => {
        $crate::harness::Case::new(
            concat!(module_path!(), "::", stringify!($story)),
            $crate::harness::Story::Shared(|node| Box::pin($story(node))),
        )
    };
}

/// A case on stacks of its own, from an `async fn(Lab) -> Result<()>`.
#[macro_export]
macro_rules! own {
    ($story:ident) => {
        $crate::harness::Case::new(
            concat!(module_path!(), "::", stringify!($story)),
            $crate::harness::Story::Own(|lab| Box::pin($story(lab))),
        )
    };
}
