//! Turns at something of which there is little, shared out among those who want one.
//!
//! Who asks for much waits longer than who asks once: no address has more than its share of the
//! turns, a turn that becomes free goes to the address, and of that to the connection, that has
//! the fewest, and where too many wait, one of those leaves who has most of them waiting.
//!
//! An address, because anybody can open another connection; and the connections of one, because
//! whole nodes may come from a single address.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

/// Whose a turn is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// The number of its connection.
    pub connection: u64,
}

impl Client {
    /// On a port for both versions of IP, an address of version 4 has two forms; of version 6, any
    /// host has as many as it likes below the 64 bits of its network.
    pub fn new(address: IpAddr, connection: u64) -> Self {
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::from((address.to_bits() & (!0 << 64)).to_be_bytes()),
            version_4 => version_4,
        };
        Client { address, connection }
    }
}

/// How many there may be.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// Turns at once.
    pub at_once: usize,
    /// Of these, one address's.
    pub share: usize,
    pub waiting: usize,
}

/// Clones share the turns.
#[derive(Clone)]
pub struct Turns(Arc<Inner>);

struct Inner {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By which the older of two is known.
    next: u64,
    held: BTreeMap<u64, Client>,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    client: Client,
    /// Dropped without a word if it waits in vain.
    tell: oneshot::Sender<()>,
}

/// Held, or waited for, until dropped.
pub struct Turn {
    turns: Turns,
    number: u64,
}

impl Turns {
    pub fn new(bounds: Bounds) -> Self {
        Turns(Arc::new(Inner { bounds, state: Mutex::default() }))
    }

    /// `None` for one who wants too many.
    pub async fn take(&self, client: Client) -> Option<Turn> {
        let (tell, told) = oneshot::channel();
        let turn = {
            let mut state = self.state();
            let number = state.next;
            state.next += 1;
            state.waiting.insert(number, Waiting { client, tell });
            state.grant(self.0.bounds);
            state.shed(self.0.bounds);
            Turn { turns: self.clone(), number }
        };
        // Whoever stops waiting drops the turn, which then waits no more either.
        told.await.is_ok().then_some(turn)
    }

    /// Whether more than half of them are held, or of what this one's address may hold.
    pub fn are_scarce_for(&self, client: &Client) -> bool {
        let (state, bounds) = (self.state(), self.0.bounds);
        let (of_address, _) = Load::of(state.held.values()).load_of(client);
        2 * state.held.len() > bounds.at_once || 2 * of_address > bounds.share
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing that holds the turns can panic")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.waiting.remove(&self.number);
        if state.held.remove(&self.number).is_some() {
            state.grant(self.turns.0.bounds);
        }
    }
}

impl State {
    /// Gives away what is free.
    fn grant(&mut self, bounds: Bounds) {
        while self.held.len() < bounds.at_once {
            let held = Load::of(self.held.values());
            let loads = self.waiting.iter().map(|(number, waiting)| (held.load_of(&waiting.client), *number));
            let Some((_, number)) = loads.filter(|((of_address, _), _)| *of_address < bounds.share).min() else {
                return;
            };
            let Waiting { client, tell } = self.waiting.remove(&number).expect("it was found there");
            self.held.insert(number, client);
            // Who has gone meanwhile is about to drop it.
            let _ = tell.send(());
        }
    }

    /// Sends away the oldest of whoever has most of them waiting: where each of a crowd has a
    /// connection of its own, one who comes later is not the one who always has to leave.
    fn shed(&mut self, bounds: Bounds) {
        if self.waiting.len() <= bounds.waiting {
            return;
        }
        let asked = Load::of(self.waiting.values().map(|waiting| &waiting.client));
        let loads = self.waiting.iter().map(|(number, waiting)| (asked.load_of(&waiting.client), Reverse(*number)));
        if let Some((_, Reverse(number))) = loads.max() {
            self.waiting.remove(&number);
        }
    }
}

/// How many of something are whose.
#[derive(Default)]
struct Load {
    addresses: BTreeMap<IpAddr, usize>,
    connections: BTreeMap<Client, usize>,
}

impl Load {
    fn of<'a>(clients: impl Iterator<Item = &'a Client>) -> Self {
        clients.fold(Load::default(), |mut load, client| {
            *load.addresses.entry(client.address).or_default() += 1;
            *load.connections.entry(*client).or_default() += 1;
            load
        })
    }

    /// Its address's, and its connection's.
    fn load_of(&self, client: &Client) -> (usize, usize) {
        let of_address = self.addresses.get(&client.address).copied();
        let of_connection = self.connections.get(client).copied();
        (of_address.unwrap_or_default(), of_connection.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;

    use futures::poll;

    use super::*;

    const BOUNDS: Bounds = Bounds { at_once: 4, share: 2, waiting: 8 };

    fn client(address: u8, connection: u64) -> Client {
        Client { address: [10, 0, 0, address].into(), connection }
    }

    type Taking = Pin<Box<dyn Future<Output = Option<Turn>> + Send>>;

    /// Asks, and says whether it was answered at once.
    async fn ask(turns: &Turns, client: Client) -> Result<Option<Turn>, Taking> {
        let turns = turns.clone();
        let mut taking: Taking = Box::pin(async move { turns.take(client).await });
        match poll!(&mut taking) {
            Poll::Ready(answer) => Ok(answer),
            Poll::Pending => Err(taking),
        }
    }

    async fn waits(turns: &Turns, client: Client) -> Taking {
        ask(turns, client).await.err().expect("it has to wait")
    }

    async fn gets(turns: &Turns, client: Client) -> Turn {
        ask(turns, client).await.ok().flatten().expect("it gets one at once")
    }

    #[test]
    fn an_address_is_counted_once_in_all_its_forms() {
        let address = |text: &str| Client::new(text.parse().expect("an address"), 1).address;
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.2"), address("10.0.0.1"));
        assert_eq!(address("fd00:1:2:3::1"), address("fd00:1:2:3:4:5:6:7"));
        assert_ne!(address("fd00:1:2:3::1"), address("fd00:1:2:4::1"));
    }

    #[tokio::test]
    async fn nobody_has_more_than_its_share_while_others_get_theirs() {
        let turns = Turns::new(BOUNDS);
        let first = gets(&turns, client(1, 1)).await;
        let _second = gets(&turns, client(1, 2)).await;
        let mut third = waits(&turns, client(1, 3)).await;
        let _other = gets(&turns, client(2, 4)).await;
        drop(first);
        assert!(poll!(&mut third).is_ready());
    }

    #[tokio::test]
    async fn who_has_fewest_comes_first() {
        let turns = Turns::new(Bounds { share: 4, ..BOUNDS });
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(gets(&turns, client(1, 1)).await);
        }
        let mut greedy = waits(&turns, client(1, 1)).await;
        let mut neighbour = waits(&turns, client(1, 2)).await;
        let mut other = waits(&turns, client(2, 3)).await;
        held.pop();
        let others = poll!(&mut other);
        assert!(matches!(others, Poll::Ready(Some(_))));
        assert!(poll!(&mut neighbour).is_pending());
        held.pop();
        let neighbours = poll!(&mut neighbour);
        assert!(matches!(neighbours, Poll::Ready(Some(_))));
        assert!(poll!(&mut greedy).is_pending());
    }

    #[tokio::test]
    async fn where_too_many_wait_one_of_the_biggest_crowd_leaves() {
        let turns = Turns::new(BOUNDS);
        let _held = [gets(&turns, client(1, 1)).await, gets(&turns, client(1, 1)).await];
        let also_held = [gets(&turns, client(2, 2)).await, gets(&turns, client(2, 2)).await];
        let mut crowd = Vec::new();
        for _ in 0..BOUNDS.waiting {
            crowd.push(waits(&turns, client(1, 1)).await);
        }
        crowd.push(waits(&turns, client(1, 1)).await);
        assert!(crowd.remove(0).await.is_none(), "one of the crowd made room for another");
        let mut single = waits(&turns, client(3, 3)).await;
        assert!(crowd.remove(0).await.is_none(), "it made room");
        // Those who leave by themselves make room as well.
        drop(crowd);
        assert_eq!(turns.state().waiting.len(), 1);
        drop(also_held);
        assert!(matches!(poll!(&mut single), Poll::Ready(Some(_))));
    }

    #[tokio::test]
    async fn a_crowd_with_a_connection_each_does_not_keep_a_neighbour_out() {
        let turns = Turns::new(BOUNDS);
        let _held = [gets(&turns, client(1, 1)).await, gets(&turns, client(1, 2)).await];
        let mut crowd = Vec::new();
        for number in 0..BOUNDS.waiting as u64 {
            crowd.push(waits(&turns, client(1, 10 + number)).await);
        }
        let mut neighbour = waits(&turns, client(1, 99)).await;
        assert!(crowd.remove(0).await.is_none());
        assert!(poll!(&mut neighbour).is_pending());
    }

    #[tokio::test]
    async fn turns_are_scarce_where_half_of_all_or_of_an_address_s_are_held() {
        let turns = Turns::new(BOUNDS);
        let mut held = vec![gets(&turns, client(1, 1)).await];
        assert!(!turns.are_scarce_for(&client(1, 1)));
        held.push(gets(&turns, client(1, 2)).await);
        assert!(turns.are_scarce_for(&client(1, 3)) && !turns.are_scarce_for(&client(2, 4)));
        held.push(gets(&turns, client(2, 4)).await);
        assert!(turns.are_scarce_for(&client(3, 5)));
        held.clear();
        assert!(!turns.are_scarce_for(&client(1, 1)));
    }

    #[tokio::test]
    async fn a_turn_that_came_to_somebody_who_has_gone_goes_on() {
        let turns = Turns::new(Bounds { at_once: 1, share: 1, waiting: 8 });
        let held = gets(&turns, client(1, 1)).await;
        let gone = waits(&turns, client(2, 2)).await;
        let mut next = waits(&turns, client(3, 3)).await;
        drop(held);
        drop(gone);
        let nexts = poll!(&mut next);
        assert!(matches!(nexts, Poll::Ready(Some(_))));
        drop(nexts);
        assert!(turns.state().held.is_empty() && turns.state().waiting.is_empty());
    }
}
