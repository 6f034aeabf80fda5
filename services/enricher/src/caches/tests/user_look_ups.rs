//! How often HQ is asked for users, when many batches want them at the same time.

use super::*;

/// Lets everything run that can.
async fn until_all_wait() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

/// A batch of each of these lists of users, all at once, with records that were published just now.
fn batches(caches: &Arc<Caches>, users: Vec<Vec<String>>) -> Vec<tokio::task::JoinHandle<bool>> {
    let one = |users: Vec<String>| {
        let caches = Arc::clone(caches);
        tokio::spawn(async move {
            let wanted: BTreeMap<&str, i64> = users.iter().map(|id| (id.as_str(), now_us() + 1_000)).collect();
            caches.users.locations(&demo(), &wanted).await.is_ok_and(|found| found.len() == wanted.len())
        })
    };
    users.into_iter().map(one).collect()
}

async fn succeeded(batches: Vec<tokio::task::JoinHandle<bool>>) -> usize {
    let mut succeeded = 0;
    for batch in batches {
        succeeded += usize::from(batch.await.unwrap());
    }
    succeeded
}

#[tokio::test]
async fn batches_that_come_at_once_ask_for_a_user_once_whether_they_have_a_location_or_not() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let users = ["nobody", "u1", "u2"].map(str::to_owned).to_vec();
    let batches = batches(&caches, vec![users; 40]);
    hq.script.entered().await;
    until_all_wait().await;
    hq.script.open.add_permits(1_000);
    assert_eq!(succeeded(batches).await, 40);
    assert_eq!(asked(&hq), ["nobody u1 u2"]);
}

#[tokio::test]
async fn users_of_all_batches_that_wait_are_asked_for_together() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let batches = batches(&caches, (0..40).map(|number| vec![format!("u{number}"), "u".to_owned()]).collect());
    hq.script.entered().await;
    until_all_wait().await;
    hq.script.open.add_permits(1_000);
    assert_eq!(succeeded(batches).await, 40);
    let asked = asked(&hq);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[1].split(' ').count(), 39, "nobody twice: {asked:?}");
}

#[tokio::test]
async fn that_a_user_has_no_location_is_asked_once_in_a_while() {
    let hq = gated_hq(1_000);
    let caches = caches(&hq, &CacheOptions { user_without_location_reuse_seconds: 60, ..CacheOptions::default() });
    for _ in 0..40 {
        assert_eq!(looked_up_for(&caches, &["nobody"], now_us() + 1_000).await, [None]);
    }
    assert_eq!(asked(&hq), ["nobody"]);
    // A location that is given and heard of counts at once.
    hq.memory.change(&[user("nobody", "demo", Some("l1"))]);
    caches.invalidate(&invalidation("user", "_", &["nobody"]));
    assert_eq!(looked_up_for(&caches, &["nobody"], now_us()).await, [Some("l1".to_owned())]);
}

#[tokio::test]
async fn few_questions_are_under_way_at_a_time() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions { user_look_ups_max: 3, ..CacheOptions::default() });
    let calls: Vec<_> = (0..40)
        .map(|number| {
            let caches = Arc::clone(&caches);
            tokio::spawn(async move {
                let domain: Domain = format!("domain-{number}").as_str().into();
                caches.users.locations(&domain, &BTreeMap::from([("u", now_us())])).await.is_ok()
            })
        })
        .collect();
    until_all_wait().await;
    assert_eq!((hq.script.entered.available_permits(), hq.times_asked()), (3, 3));
    hq.script.open.add_permits(1_000);
    assert_eq!(succeeded(calls).await, 40);
}

#[tokio::test]
async fn a_directory_that_is_down_is_not_asked_by_each_who_waits() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    hq.script.down.store(true, Ordering::SeqCst);
    let batches = batches(&caches, vec![vec!["u1".to_owned()]; 40]);
    hq.script.entered().await;
    until_all_wait().await;
    hq.script.open.add_permits(1_000);
    assert_eq!(succeeded(batches).await, 0);
    assert_eq!(hq.times_asked(), 2, "one that was under way, and one for all who came meanwhile");
    hq.script.down.store(false, Ordering::SeqCst);
    assert_eq!(looked_up(&caches, &["u1"]).await, [Some("loc of u1".to_owned())]);
}

#[tokio::test]
async fn a_user_about_whom_hq_cannot_answer_fails_only_who_wants_them() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let batches = batches(&caches, ["u", "u1", HARD_USER, "u2", "u3"].map(|id| vec![id.to_owned()]).to_vec());
    hq.script.entered().await;
    until_all_wait().await;
    hq.script.open.add_permits(1_000);
    assert_eq!(succeeded(batches).await, 4);
    assert_eq!(hq.times_asked(), 6, "after one for all who wait, each their own: {:?}", asked(&hq));
}

#[tokio::test]
async fn who_waits_no_longer_leaves_the_answer_to_the_next() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let gone = batches(&caches, vec![vec!["u1".to_owned()]]).remove(0);
    hq.script.entered().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    hq.script.open.add_permits(1_000);
    assert_eq!(looked_up(&caches, &["u1"]).await, [Some("loc of u1".to_owned())]);
    assert_eq!(asked(&hq), ["u1"]);
}
