use std::sync::atomic::AtomicUsize;

use super::*;

fn answers() -> Answers<u32> {
    Answers::new(Clock::simulated(jiff::Timestamp::UNIX_EPOCH, 1))
}

fn asking(address: u8) -> Asking {
    Asking::begin(Client { address: [10, 0, 0, address].into(), connection: 0 })
}

/// Asks `question`, which is answered by its number after `takes`, and counts.
async fn ask(answers: &Answers<u32>, number: u32, favourable: bool, count: &Arc<AtomicUsize>) -> Option<u32> {
    let count = count.clone();
    let asked = answers.get(asking(number as u8 % 8), question(&number.to_be_bytes()), move || {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            sleep(Duration::from_secs(1)).await;
            Ok(Answer { value: number, keep: Duration::from_secs(600), is_favourable: favourable })
        }
    });
    asked.await.ok()
}

#[tokio::test(start_paused = true)]
async fn equal_questions_are_asked_once_and_their_answer_is_kept_for_its_time() {
    let (answers, count) = (answers(), Arc::default());
    let both = futures::future::join(ask(&answers, 1, true, &count), ask(&answers, 1, true, &count)).await;
    assert_eq!((both, count.load(Ordering::Relaxed)), ((Some(1), Some(1)), 1));
    ask(&answers, 1, true, &count).await;
    assert_eq!(count.load(Ordering::Relaxed), 1);
    tokio::time::advance(Duration::from_secs(600)).await;
    ask(&answers, 1, true, &count).await;
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn who_asked_first_may_leave_and_the_others_still_hear() {
    let (answers, count) = (answers(), Arc::default());
    let first = timeout(Duration::from_millis(10), ask(&answers, 1, true, &count));
    let (first, second) = futures::future::join(first, ask(&answers, 1, true, &count)).await;
    assert_eq!((first.is_err(), second, count.load(Ordering::Relaxed)), (true, Some(1), 1));
    // One that everybody has left is asked anew.
    let left = timeout(Duration::from_millis(10), ask(&answers, 2, true, &count)).await;
    assert!(left.is_err());
    assert_eq!((ask(&answers, 2, true, &count).await, count.load(Ordering::Relaxed)), (Some(2), 3));
}

#[tokio::test(start_paused = true)]
async fn refusals_give_way_first_when_there_are_too_many_answers() {
    let (answers, count) = (answers(), Arc::default());
    ask(&answers, 0, true, &count).await;
    for chunk in (1..=2 * KEPT_MAX as u32).collect::<Vec<_>>().chunks(ASKED.at_once * 4) {
        futures::future::join_all(chunk.iter().map(|number| ask(&answers, *number, false, &count))).await;
        assert!(answers.0.state().kept.len() <= KEPT_MAX);
    }
    let before = count.load(Ordering::Relaxed);
    assert_eq!(ask(&answers, 0, true, &count).await, Some(0));
    assert_eq!(count.load(Ordering::Relaxed), before);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_asked_again_and_one_that_hangs_is_given_up() {
    let (answers, count) = (answers(), Arc::new(AtomicUsize::new(0)));
    let calls = count.clone();
    let recovered = answers.get(asking(1), question(b"away"), move || {
        let nth = calls.fetch_add(1, Ordering::Relaxed);
        async move {
            match nth {
                0 => Err(ApiError::Unavailable { what: "review".into(), message: "away".into() }),
                _ => Ok(Answer { value: 7, keep: Duration::ZERO, is_favourable: true }),
            }
        }
    });
    assert_eq!(recovered.await.ok(), Some(7));
    let start = Instant::now();
    let hung = answers.get(asking(1), question(b"hangs"), futures::future::pending).await;
    assert!(matches!(hung, Err(ReviewError::NoAnswer)), "{hung:?}");
    // Timers count in milliseconds.
    assert_eq!(start.elapsed().as_secs(), ANSWER_WITHIN.as_secs());
}

/// As many questions of one address as may wait, none of which is answered.
fn crowd(answers: &Answers<u32>) -> impl Future {
    futures::future::join_all((0..(ASKED.share + ASKED.waiting) as u32).map(|number| one_of_many(answers, number)))
}

fn one_of_many(answers: &Answers<u32>, number: u32) -> impl Future<Output = Result<u32, ReviewError>> {
    let answers = answers.clone();
    async move { answers.get(asking(1), question(&number.to_be_bytes()), futures::future::pending).await }
}

async fn answer_at_once() -> Result<Answer<u32>, ApiError> {
    Ok(Answer { value: 1, keep: Duration::ZERO, is_favourable: true })
}

#[tokio::test(start_paused = true)]
async fn where_too_many_of_one_address_wait_the_oldest_of_them_is_turned_away_at_once() {
    let answers = answers();
    let mut crowd: Vec<_> =
        (0..(ASKED.share + ASKED.waiting) as u32).map(|number| Box::pin(one_of_many(&answers, number))).collect();
    for one in &mut crowd {
        assert!(futures::poll!(one).is_pending());
    }
    let mut late = Box::pin(answers.get(asking(1), question(b"late"), futures::future::pending));
    assert!(futures::poll!(&mut late).is_pending());
    let oldest = futures::poll!(&mut crowd[ASKED.share]);
    assert!(matches!(oldest, std::task::Poll::Ready(Err(ReviewError::TooMany))), "{oldest:?}");
    drop((crowd, late));
    // Once they have left, there is room.
    let asked = answers.get(asking(1), question(b"late"), answer_at_once);
    assert_eq!(asked.await.ok(), Some(1));
    assert!(answers.0.state().asked.len() <= ASKED.at_once + ASKED.waiting);
}

#[tokio::test(start_paused = true)]
async fn who_asks_once_gets_an_answer_in_spite_of_somebody_who_asks_without_end() {
    let answers = answers();
    let mut crowd = Box::pin(crowd(&answers));
    assert!(futures::poll!(&mut crowd).is_pending());
    let mut other = Box::pin(answers.get(asking(2), question(b"other"), answer_at_once));
    let answered = futures::poll!(&mut other);
    assert!(matches!(answered, std::task::Poll::Ready(Ok(1))), "{answered:?}");
}

#[tokio::test(start_paused = true)]
async fn all_questions_of_a_request_have_one_deadline() {
    let (answers, start, asking) = (answers(), Instant::now(), asking(1));
    let slow = || async {
        sleep(ANSWER_WITHIN - Duration::from_secs(1)).await;
        answer_at_once().await
    };
    assert_eq!(answers.get(asking, question(b"who"), slow).await.ok(), Some(1));
    let second = answers.get(asking, question(b"whether"), slow).await;
    assert!(matches!(second, Err(ReviewError::NoAnswer)), "{second:?}");
    assert_eq!(start.elapsed().as_secs(), ANSWER_WITHIN.as_secs());
}
