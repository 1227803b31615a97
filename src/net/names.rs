//! Looks names up in such a way that a name service which is dead holds up nobody but those
//! who need it.
//!
//! A look-up takes a thread of the pool that all blocking work of the agent shares, and keeps
//! it until the C library gives up, long after the probe that asked has. So only a few run at
//! once, and of one name only one, whose answer is for all who ask meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Semaphore, watch};

/// Many for names that are answered in milliseconds, few among the 512 threads of the pool.
const AT_ONCE: usize = 32;

type Addresses = Result<Vec<IpAddr>, (io::ErrorKind, String)>;
/// By name, where the answer will be.
type Running = BTreeMap<String, watch::Receiver<Option<Addresses>>>;
type Resolve = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

pub struct Names {
    resolve: Resolve,
    slots: Arc<Semaphore>,
    running: Arc<Mutex<Running>>,
}

impl Names {
    /// Asks as this machine is set up to.
    pub fn new() -> Self {
        Names::by(Arc::new(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())))
    }

    fn by(resolve: Resolve) -> Self {
        Names { resolve, slots: Arc::new(Semaphore::new(AT_ONCE)), running: Arc::default() }
    }

    /// Where to reach `host`, a name or an address. Dropping the future ends the wait only.
    pub async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let joined = lock(&self.running).get(host).cloned();
        let mut answer = match joined {
            Some(answer) => answer,
            None => self.begin(host).await,
        };
        let gone = |_| io::Error::other("the look-up was given up");
        let addresses = answer.wait_for(Option::is_some).await.map_err(gone)?.clone().unwrap_or(Ok(Vec::new()));
        match addresses {
            Ok(addresses) => Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()),
            Err((kind, text)) => Err(io::Error::new(kind, text)),
        }
    }

    /// The answer of a look-up that begins once there is a slot, unless another has by then.
    async fn begin(&self, host: &str) -> watch::Receiver<Option<Addresses>> {
        let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut running = lock(&self.running);
        if let Some(answer) = running.get(host) {
            return answer.clone();
        }
        let (told, answer) = watch::channel(None);
        running.insert(host.to_owned(), answer.clone());
        let (resolve, table, host) = (self.resolve.clone(), self.running.clone(), host.to_owned());
        tokio::task::spawn_blocking(move || {
            let found = resolve(&host).map_err(|error| (error.kind(), error.to_string()));
            // Whoever asks from now on wants a newer answer.
            lock(&table).remove(&host);
            told.send_replace(Some(found));
            drop(slot);
        });
        answer
    }
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().expect("nothing that holds the table of look-ups can panic")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::timeout;

    use super::*;

    /// Names whose look-ups end when the sender is dropped, and how many have begun.
    fn stuck() -> (Names, Arc<AtomicUsize>, mpsc::Sender<()>) {
        let (end, wait) = mpsc::channel::<()>();
        let (wait, begun) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
        let count = begun.clone();
        let resolve = move |_: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            // One holds the lock and waits for the end, the others for the lock.
            let _ = wait.lock().expect("nobody panics with it").recv();
            Ok(vec![IpAddr::from([10, 0, 0, 1])])
        };
        (Names::by(Arc::new(resolve)), begun, end)
    }

    #[tokio::test]
    async fn names_that_nobody_answers_take_no_more_threads_than_their_share() {
        let (names, begun, end) = stuck();
        let asked: Vec<_> = (0..200).map(|nth| format!("shop-{nth}.example")).collect();
        let soon = Duration::from_millis(300);
        let all = join_all(asked.iter().map(|name| timeout(soon, names.look_up(name, 80)))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(begun.load(Ordering::Relaxed), AT_ONCE);
        let address = timeout(soon, names.look_up("10.9.8.7", 80)).await.expect("needs no look-up");
        assert_eq!(address.expect("an address"), [SocketAddr::from(([10, 9, 8, 7], 80))]);
        drop(end);
        let later = timeout(Duration::from_secs(10), names.look_up("later.example", 443)).await.expect("in time");
        assert_eq!(later.expect("an answer"), [SocketAddr::from(([10, 0, 0, 1], 443))]);
        assert!(lock(&names.running).len() < AT_ONCE, "what has ended is forgotten");
    }

    #[tokio::test]
    async fn a_name_that_is_asked_for_again_and_again_is_looked_up_once() {
        let (names, begun, end) = stuck();
        for _ in 0..50 {
            assert!(timeout(Duration::from_millis(2), names.look_up("shop.example", 80)).await.is_err());
        }
        let all = join_all((0..50).map(|port| names.look_up("shop.example", port)));
        let (all, ()) = tokio::join!(all, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(begun.load(Ordering::Relaxed), 1);
            drop(end);
        });
        for (port, found) in (0..50).zip(all) {
            assert_eq!(found.expect("an answer"), [SocketAddr::from(([10, 0, 0, 1], port))]);
        }
        names.look_up("shop.example", 80).await.expect("an answer");
        assert_eq!(begun.load(Ordering::Relaxed), 2, "an answer is not kept");
    }

    #[tokio::test]
    async fn who_has_waited_for_a_slot_joins_whoever_began_meanwhile() {
        let (names, _, end) = stuck();
        let (first, second) = (names.begin("shop.example").await, names.begin("shop.example").await);
        assert!(first.same_channel(&second));
        drop(end);
    }

    #[tokio::test]
    async fn why_there_is_no_address_is_told() {
        let names = Names::by(Arc::new(|name| Err(io::Error::new(io::ErrorKind::NotFound, format!("no {name}")))));
        let error = names.look_up("shop.example", 80).await.expect_err("no such host");
        assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::NotFound, "no shop.example".to_owned()));
    }
}
