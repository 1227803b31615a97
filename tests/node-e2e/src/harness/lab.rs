//! Where a case makes nodes of its own, to break what it likes.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, anyhow, bail};

use super::Node;
use crate::provision::Containerd;
use crate::stack::{Agent, Builder, Stack};

#[derive(Clone)]
pub struct Lab(Rc<LabInner>);

struct LabInner {
    agent: Agent,
    containerd: Containerd,
    stacks: RefCell<Vec<Rc<Stack>>>,
}

impl Lab {
    pub(crate) fn new(agent: Agent, containerd: Containerd) -> Lab {
        Lab(Rc::new(LabInner { agent, containerd, stacks: RefCell::default() }))
    }

    pub fn agent(&self) -> Agent {
        self.0.agent
    }

    /// A node as `ask` has it. If it has all parts, it is Ready when this returns.
    pub async fn node(&self, ask: impl FnOnce(Builder) -> Builder) -> Result<Node> {
        self.node_of(self.0.agent, ask).await
    }

    /// The same with another agent than the one that is tested, to compare the two.
    pub async fn node_of(&self, agent: Agent, ask: impl FnOnce(Builder) -> Builder) -> Result<Node> {
        let builder = Stack::builder().agent(agent).containerd(self.0.containerd);
        let builder = ask(builder);
        let complete = builder.is_complete();
        let stack = Rc::new(builder.start().await?);
        self.0.stacks.borrow_mut().push(stack.clone());
        let node = Node::in_namespace(stack, "default").await?;
        if complete {
            let ready = node.expect_node_ready("True").await;
            ready.map_err(|error| anyhow!("{error:#}\n{}", node.stack().log_tails()))?;
        }
        Ok(node)
    }

    pub(super) fn stacks(&self) -> Vec<Rc<Stack>> {
        self.0.stacks.borrow().clone()
    }

    /// Ends all stacks. The case is over, so nobody else holds them.
    pub(crate) async fn clear(&self) -> Result<()> {
        for stack in self.0.stacks.take() {
            match Rc::try_unwrap(stack) {
                Ok(stack) => stack.end().await?,
                Err(_) => bail!("a stack is still in use after its case"),
            }
        }
        Ok(())
    }
}
