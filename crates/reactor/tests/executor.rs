use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use weft_reactor::testing::VirtualTime;
use weft_reactor::{Aborted, Clock, Either, Elapsed, Executor, Handle, Instant, VirtualClock, join, join_all, select};

const MS: Duration = Duration::from_millis(1);

#[test]
fn sleeps_fire_by_deadline_then_by_registration() {
    let time = VirtualTime::new(1);
    let handle = time.handle();
    let order = Rc::new(RefCell::new(Vec::new()));
    for (name, millis) in [("c", 30), ("a1", 10), ("b", 20), ("a2", 10)] {
        let (handle, order) = (handle.clone(), Rc::clone(&order));
        time.handle()
            .spawn("sleeper", async move {
                handle.sleep(MS * millis).await;
                order.borrow_mut().push((name, handle.now()));
            })
            .detach();
    }
    time.block_on(handle.sleep(MS * 40));
    let at = |millis: u64| Instant(millis * 1_000_000);
    assert_eq!(*order.borrow(), [("a1", at(10)), ("a2", at(10)), ("b", at(20)), ("c", at(30))]);
}

#[test]
fn tasks_return_abort_and_detach() {
    let time = VirtualTime::new(1);
    let handle = time.handle();
    let ran = Rc::new(Cell::new(0));
    time.block_on(async {
        assert_eq!(handle.spawn("answer", async { 42 }).await, Ok(42));

        let sleeping = handle.spawn("sleeping", {
            let (handle, ran) = (handle.clone(), Rc::clone(&ran));
            async move {
                handle.sleep(MS).await;
                ran.set(ran.get() + 1);
            }
        });
        handle.yield_now().await;
        sleeping.abort();
        assert!(sleeping.is_finished());
        assert_eq!(sleeping.await, Err(Aborted));

        handle
            .spawn("detached", {
                let (handle, ran) = (handle.clone(), Rc::clone(&ran));
                async move {
                    handle.sleep(MS).await;
                    ran.set(ran.get() + 10);
                }
            })
            .detach();
        handle.sleep(MS * 2).await;
    });
    assert_eq!(ran.get(), 10);
    assert_eq!(handle.task_count(), 0);
}

#[test]
fn a_task_may_abort_itself() {
    let time = VirtualTime::new(1);
    let handle = time.handle();
    let slot: Rc<RefCell<Option<weft_reactor::Task<()>>>> = Rc::default();
    let task = handle.spawn("suicidal", {
        let (handle, slot) = (handle.clone(), Rc::clone(&slot));
        async move {
            slot.borrow().as_ref().unwrap().abort();
            handle.sleep(MS).await;
            unreachable!("it was aborted");
        }
    });
    *slot.borrow_mut() = Some(task);
    time.run_for(MS * 5);
    assert!(slot.borrow().as_ref().unwrap().is_finished());
    assert_eq!(handle.task_count(), 0);
}

#[test]
fn timeouts_give_up_and_combinators_finish() {
    let time = VirtualTime::new(1);
    let handle = time.handle();
    time.block_on(async {
        assert_eq!(handle.timeout(MS, handle.sleep(MS * 2)).await, Err(Elapsed));
        assert_eq!(handle.timeout(MS * 2, handle.sleep(MS)).await, Ok(()));
        assert_eq!(handle.now(), Instant(2_000_000));
        let after = |millis: u32| {
            let handle = handle.clone();
            async move {
                handle.sleep(MS * millis).await;
                millis
            }
        };
        assert_eq!(select(after(2), after(1)).await, Either::Right(1));
        assert_eq!(select(after(1), after(1)).await, Either::Left(1));
        assert_eq!(join(after(3), after(1)).await, (3, 1));
        assert_eq!(join_all([3, 1, 2].map(after)).await, [3, 1, 2]);
        assert!(join_all(Vec::<std::future::Ready<()>>::new()).await.is_empty());
    });
    assert_eq!(time.clock().now(), Instant(10_000_000));
}

#[test]
fn the_same_seed_draws_the_same_numbers() {
    let draw = |seed| {
        let handle = VirtualTime::new(seed).handle();
        [handle.random_u64(), handle.random_u64()]
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
}

#[test]
fn run_respects_its_budget_and_polls_in_order() {
    let executor = Executor::new(Rc::new(VirtualClock::new()), 0);
    let handle = executor.handle();
    let order = Rc::new(RefCell::new(Vec::new()));
    for number in 0..5 {
        let (handle, order) = (handle.clone(), Rc::clone(&order));
        executor
            .handle()
            .spawn("counter", async move {
                order.borrow_mut().push(number);
                handle.yield_now().await;
                order.borrow_mut().push(number + 10);
            })
            .detach();
    }
    assert!(!executor.is_idle());
    assert_eq!(executor.run(3), 3);
    assert_eq!(*order.borrow(), [0, 1, 2]);
    assert_eq!(executor.run(100), 7);
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]);
    assert!(executor.is_idle());
    assert_eq!(executor.next_deadline(), None);
    let stats = handle.task_stats();
    assert_eq!((stats[0].name, stats[0].spawned, stats[0].polls), ("counter", 5, 10));
}

/// Uses its handle for everything when it is dropped.
struct Meddler(Handle);

impl Drop for Meddler {
    fn drop(&mut self) {
        let handle = self.0.clone();
        let inner = Meddler2(handle.clone());
        let task = handle.spawn("late", async move {
            let _inner = inner;
        });
        task.abort();
        drop(handle.sleep(MS));
        let _ = (handle.now(), handle.random_u64(), handle.task_stats());
        handle.shutdown();
    }
}

struct Meddler2(Handle);

impl Drop for Meddler2 {
    fn drop(&mut self) {
        self.0.spawn("later", async {}).detach();
    }
}

#[test]
fn dropping_the_executor_drops_tasks_whose_destructors_use_it() {
    let executor = Executor::new(Rc::new(VirtualClock::new()), 0);
    let handle = executor.handle();
    let alive = Rc::new(());
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (meddler, alive, handle) = (Meddler(handle.clone()), Rc::clone(&alive), handle.clone());
        tasks.push(executor.handle().spawn("waiting", async move {
            let _held = (meddler, alive);
            handle.sleep(Duration::MAX).await;
        }));
    }
    executor.run(100);
    assert_eq!(Rc::strong_count(&alive), 4);
    drop(executor);
    assert_eq!(Rc::strong_count(&alive), 1);
    assert!(tasks.iter().all(weft_reactor::Task::is_finished));
    assert_eq!(handle.task_count(), 0);
    handle.spawn("too late", async { unreachable!() }).detach();
}

#[test]
fn wakers_work_from_other_threads() {
    let executor = Executor::new(Rc::new(VirtualClock::new()), 0);
    let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let waker: Rc<RefCell<Option<std::task::Waker>>> = Rc::default();
    let task = executor.handle().spawn("waiting", {
        let (flag, waker) = (flag.clone(), Rc::clone(&waker));
        std::future::poll_fn(move |context| {
            *waker.borrow_mut() = Some(context.waker().clone());
            match flag.load(std::sync::atomic::Ordering::Acquire) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
    });
    executor.run(10);
    assert!(executor.is_idle());
    let taken = waker.borrow_mut().take().unwrap();
    std::thread::spawn(move || {
        flag.store(true, std::sync::atomic::Ordering::Release);
        taken.wake();
    })
    .join()
    .unwrap();
    executor.run(10);
    assert!(task.is_finished());
}

#[test]
#[should_panic(expected = "deadlock")]
fn waiting_for_nothing_is_a_deadlock() {
    VirtualTime::new(0).block_on(std::future::pending::<()>());
}

#[test]
fn shutdown_reaches_those_who_wait_for_it() {
    let time = VirtualTime::new(0);
    let handle = time.handle();
    let waiting = handle.spawn("waiting", {
        let handle = handle.clone();
        async move { handle.until_shutdown().await }
    });
    time.run_for(MS);
    assert!(!waiting.is_finished());
    handle.shutdown();
    assert_eq!(time.block_on(waiting), Ok(()));
    time.block_on(handle.until_shutdown());
}
