use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use weft_reactor::sync::Notify;
use weft_reactor::{Core, CoreOptions, Handle, Idle, Instant, Mailbox, MailboxError, Poller};

const SLEEPY: Idle = Idle::Adaptive { spin: Duration::ZERO };

fn core(idle: Idle) -> Core {
    Core::new(CoreOptions { name: "test-core".into(), idle, seed: 1, pin: None }).unwrap()
}

/// Starts a core on its own thread.
fn start(idle: Idle) -> (Mailbox, std::thread::JoinHandle<()>) {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        let mut core = core(idle);
        sender.send(core.mailbox()).unwrap();
        core.run().unwrap();
    });
    (receiver.recv().unwrap(), thread)
}

#[test]
fn messages_wake_a_core_in_order_and_are_refused_at_its_end() {
    for idle in [SLEEPY, Idle::Busy] {
        let (mailbox, thread) = start(idle);
        let (sender, receiver) = channel();
        for number in 0..1000 {
            let sender = sender.clone();
            mailbox.send(Box::new(move |_| sender.send(number).unwrap())).unwrap();
            if number % 100 == 99 {
                // Lets the core fall asleep again.
                assert!(receiver.iter().take(100).eq(number - 99..=number));
            }
        }
        mailbox.send(Box::new(Handle::shutdown)).unwrap();
        thread.join().unwrap();
        assert_eq!(mailbox.send(Box::new(|_| ())), Err(MailboxError::Closed));
    }
}

#[test]
fn a_waker_on_another_thread_ends_the_sleep() {
    let (mailbox, thread) = start(SLEEPY);
    let (sender, receiver) = channel::<std::task::Waker>();
    mailbox
        .send(Box::new(move |handle| {
            let mut polled = false;
            let shutdown = handle.clone();
            handle
                .spawn("waiting", async move {
                    std::future::poll_fn(|context| {
                        if std::mem::replace(&mut polled, true) {
                            return std::task::Poll::Ready(());
                        }
                        sender.send(context.waker().clone()).unwrap();
                        std::task::Poll::Pending
                    })
                    .await;
                    shutdown.shutdown();
                })
                .detach();
        }))
        .unwrap();
    receiver.recv().unwrap().wake();
    thread.join().unwrap();
}

#[test]
fn timers_end_the_sleep_and_idle_is_asleep() {
    let mut core = core(SLEEPY);
    let handle = core.handle();
    let shutdown = handle.clone();
    let started = handle.now();
    handle
        .spawn("sleeper", async move {
            for _ in 0..5 {
                shutdown.sleep(Duration::from_millis(4)).await;
            }
            shutdown.shutdown();
        })
        .detach();
    core.run().unwrap();
    assert!(handle.now().since(started) >= Duration::from_millis(20));
    let stats = core.stats();
    assert!(stats.sleeps >= 5, "{stats:?}");
    assert!(stats.rounds < 100, "it must not spin: {stats:?}");
    assert_eq!(handle.task_stats()[0].polls, 6);
}

#[test]
fn registered_descriptors_call_back() {
    for idle in [SLEEPY, Idle::Busy] {
        let mut core = core(idle);
        let handle = core.handle();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let readable = Notify::new();
        let notify = readable.clone();
        let registration = handle.register_fd(near.as_raw_fd(), Rc::new(move || notify.notify_one())).unwrap();
        assert!(handle.register_fd(near.as_raw_fd(), Rc::new(|| ())).is_err(), "twice");
        assert!(handle.register_fd(-1, Rc::new(|| ())).is_err(), "not open");
        let got = Rc::new(RefCell::new(Vec::new()));
        let (task_handle, task_got) = (handle.clone(), Rc::clone(&got));
        handle
            .spawn("reader", async move {
                let mut buffer = [0; 16];
                while task_got.borrow().len() < 3 {
                    match near.read(&mut buffer) {
                        Ok(count) => task_got.borrow_mut().extend_from_slice(&buffer[..count]),
                        Err(_) => readable.notified().await,
                    }
                }
                drop(registration);
                task_handle.shutdown();
            })
            .detach();
        let writer = std::thread::spawn(move || {
            for byte in b"abc" {
                far.write_all(&[*byte]).unwrap();
                std::thread::yield_now();
            }
            far
        });
        core.run().unwrap();
        writer.join().unwrap();
        assert_eq!(*got.borrow(), b"abc");
    }
}

/// Reads single bytes from a socket.
struct SocketPoller {
    socket: UnixStream,
    got: Rc<Cell<usize>>,
    handle: Handle,
}

impl Poller for SocketPoller {
    fn poll(&mut self, _now: Instant) -> usize {
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(1) => {
                self.got.set(self.got.get() + 1);
                if self.got.get() == 3 {
                    self.handle.shutdown();
                }
                1
            }
            _ => 0,
        }
    }

    fn wait_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }
}

/// Asks to be woken a few times.
struct AlarmPoller {
    wake_at: Instant,
    woken: Rc<Cell<usize>>,
}

impl Poller for AlarmPoller {
    fn poll(&mut self, now: Instant) -> usize {
        if now < self.wake_at {
            return 0;
        }
        self.wake_at = now + Duration::from_millis(1);
        self.woken.set(self.woken.get() + 1);
        1
    }

    fn before_sleep(&mut self) -> Option<Instant> {
        Some(self.wake_at)
    }
}

#[test]
fn pollers_end_the_sleep_by_descriptor_and_by_time() {
    let mut core = core(SLEEPY);
    let handle = core.handle();
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let (got, woken) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    core.add_poller(Box::new(SocketPoller { socket: near, got: Rc::clone(&got), handle: handle.clone() })).unwrap();
    handle.add_poller(Box::new(AlarmPoller { wake_at: Instant::ZERO, woken: Rc::clone(&woken) }));
    let (task_handle, task_woken) = (handle.clone(), Rc::clone(&woken));
    handle
        .spawn("writer", async move {
            while task_woken.get() < 3 {
                task_handle.sleep(Duration::from_millis(1)).await;
            }
            far.write_all(b"abc").unwrap();
            std::future::pending::<()>().await;
        })
        .detach();
    core.run().unwrap();
    assert_eq!(got.get(), 3);
    assert!(core.stats().sleeps > 0);
}

/// Ends the core when the flag is set.
struct FlagPoller {
    flag: Arc<AtomicBool>,
    handle: Handle,
}

impl Poller for FlagPoller {
    fn poll(&mut self, _now: Instant) -> usize {
        if self.flag.load(Ordering::Relaxed) {
            self.handle.shutdown();
        }
        0
    }
}

#[test]
fn what_a_message_leaves_to_a_poller_is_done_before_the_core_sleeps() {
    let mut core = core(SLEEPY);
    let flag = Arc::new(AtomicBool::new(false));
    core.add_poller(Box::new(FlagPoller { flag: Arc::clone(&flag), handle: core.handle() })).unwrap();
    core.mailbox().send(Box::new(move |_| flag.store(true, Ordering::Relaxed))).unwrap();
    core.run().unwrap();
}

#[test]
fn shutdown_lets_waiting_tasks_finish() {
    let mut core = core(SLEEPY);
    let handle = core.handle();
    let done = Rc::new(Cell::new(false));
    let (task_handle, task_done) = (handle.clone(), Rc::clone(&done));
    handle
        .spawn("last words", async move {
            task_handle.until_shutdown().await;
            task_handle.yield_now().await;
            task_done.set(true);
        })
        .detach();
    let stopper = handle.clone();
    handle
        .spawn("stopper", async move {
            stopper.yield_now().await;
            stopper.shutdown();
        })
        .detach();
    core.run().unwrap();
    assert!(done.get());
}

#[test]
fn a_processor_that_is_not_there_is_refused() {
    let options = CoreOptions { name: "pinned".into(), idle: SLEEPY, seed: 0, pin: Some(1023) };
    assert!(Core::new(options).unwrap_err().to_string().contains("processor 1023"));
}
