use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use weft_reactor::sync::mpsc::{Closed, TrySendError, bounded};
use weft_reactor::sync::{Dropped, Mutex, Notify, Pending, Semaphore, Watch, completion};
use weft_reactor::testing::VirtualTime;
use weft_reactor::{Elapsed, join_all};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_completion_delivers_or_reports_the_drop() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    time.block_on(async {
        assert_eq!(Pending::ready(1).await, Ok(1));

        let (completer, mut pending) = completion();
        assert!(!pending.is_settled());
        assert_eq!(pending.try_take(), None);
        assert_eq!(handle.timeout(MS, &mut pending).await, Err(Elapsed));
        completer.complete(2);
        assert!(pending.is_settled());
        assert_eq!(pending.await, Ok(2));

        let (completer, pending) = completion::<u8>();
        handle
            .spawn("dropper", {
                let handle = handle.clone();
                async move {
                    handle.sleep(MS).await;
                    drop(completer);
                }
            })
            .detach();
        assert_eq!(pending.await, Err(Dropped));

        let (completer, pending) = completion::<u8>();
        assert!(!completer.is_abandoned());
        drop(pending);
        assert!(completer.is_abandoned());
        completer.complete(3);
    });
}

#[test]
fn a_queue_is_bounded_and_in_order() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    let (sender, mut receiver) = bounded(2);
    time.block_on(async {
        let producers: Vec<_> = (0..4)
            .map(|number| {
                let sender = sender.clone();
                handle.spawn("producer", async move {
                    sender.send(number).await.unwrap();
                    sender.send(number + 10).await.unwrap();
                })
            })
            .collect();
        handle.sleep(MS).await;
        assert_eq!(receiver.len(), 2);
        assert_eq!(sender.try_send(99), Err(TrySendError::Full(99)));
        drop(sender);
        let mut got = Vec::new();
        while let Some(number) = receiver.recv().await {
            got.push(number);
            assert!(receiver.len() <= 2);
        }
        assert_eq!(got, [0, 10, 1, 2, 3, 11, 12, 13]);
        assert!(join_all(producers).await.iter().all(Result::is_ok));

        let (sender, receiver) = bounded(1);
        sender.send(1).await.unwrap();
        let blocked: Vec<_> = (2..4)
            .map(|number| {
                let sender = sender.clone();
                handle.spawn("blocked", async move { sender.send(number).await })
            })
            .collect();
        handle.sleep(MS).await;
        drop(receiver);
        assert_eq!(join_all(blocked).await, [Ok(Err(Closed(2))), Ok(Err(Closed(3)))]);
        assert_eq!(sender.try_send(4), Err(TrySendError::Closed(4)));
    });
}

#[test]
fn a_semaphore_is_fair_and_loses_no_permit() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    let semaphore = Semaphore::new(1);
    let order = Rc::new(RefCell::new(Vec::new()));
    time.block_on(async {
        let first = semaphore.acquire().await;
        let waiting: Vec<_> = (0..4)
            .map(|number| {
                let (handle, semaphore, order) = (handle.clone(), semaphore.clone(), Rc::clone(&order));
                handle.clone().spawn("waiting", async move {
                    let _permit = semaphore.acquire().await;
                    order.borrow_mut().push(number);
                    handle.sleep(MS).await;
                })
            })
            .collect();
        handle.yield_now().await;
        assert!(semaphore.try_acquire().is_none());
        // One gives up while waiting, one right after it was granted the permit.
        waiting[1].abort();
        drop(first);
        waiting[0].abort();
        assert!(semaphore.try_acquire().is_none(), "nobody overtakes");
        join_all(waiting).await;
    });
    assert_eq!(*order.borrow(), [2, 3]);
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn a_mutex_is_exclusive_across_awaits() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    let mutex = Rc::new(Mutex::new(0));
    time.block_on(async {
        let adders = (0..10).map(|_| {
            let (handle, mutex) = (handle.clone(), Rc::clone(&mutex));
            handle.clone().spawn("adder", async move {
                let mut guard = mutex.lock().await;
                let before = *guard;
                handle.sleep(MS).await;
                *guard = before + 1;
            })
        });
        join_all(adders.collect::<Vec<_>>()).await;
        assert_eq!(*mutex.try_lock().unwrap(), 10);
    });
}

#[test]
fn a_notification_is_stored_and_survives_a_dropped_waiter() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    let notify = Notify::new();
    time.block_on(async {
        notify.notify_one();
        notify.notify_one();
        notify.notified().await;
        assert_eq!(handle.timeout(MS, notify.notified()).await, Err(Elapsed), "twice is like once");

        let woken = Rc::new(Cell::new(0));
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (notify, woken) = (notify.clone(), Rc::clone(&woken));
                handle.spawn("waiting", async move {
                    notify.notified().await;
                    woken.set(woken.get() + 1);
                })
            })
            .collect();
        handle.yield_now().await;
        notify.notify_one();
        waiting[0].abort();
        handle.sleep(MS).await;
        assert_eq!(woken.get(), 1, "the notification went on to the second");
        notify.notify_all();
        handle.sleep(MS).await;
        assert_eq!(woken.get(), 2);
        assert_eq!(handle.timeout(MS, notify.notified()).await, Err(Elapsed), "nothing is stored for all");
    });
}

#[test]
fn a_watch_tells_of_changes_since_it_was_asked() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    let watch = Watch::new(0);
    time.block_on(async {
        let changed = watch.changed();
        watch.set(1);
        changed.await;
        assert_eq!(handle.timeout(MS, watch.changed()).await, Err(Elapsed));
        let writer = watch.clone();
        handle
            .spawn("writer", {
                let handle = handle.clone();
                async move {
                    for _ in 0..5 {
                        handle.sleep(MS).await;
                        writer.update(|value| *value += 1);
                    }
                }
            })
            .detach();
        watch.wait_for(|value| *value == 4).await;
        assert_eq!((watch.get(), watch.version()), (4, 4));
        watch.changed_since(0).await;
        watch.wait_for(|value| *value > 4).await;
    });
}
