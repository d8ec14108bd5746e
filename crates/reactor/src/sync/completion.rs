use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A value that one side delivers once and the other awaits.
pub fn completion<T>() -> (Completer<T>, Pending<T>) {
    let shared = Rc::new(RefCell::new(State::Waiting(None)));
    (Completer { shared: Some(Rc::clone(&shared)) }, Pending { source: Source::Shared(shared) })
}

enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    Dropped,
    Taken,
}

/// The [`Completer`] was dropped without delivering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dropped before it was completed")
    }
}

impl std::error::Error for Dropped {}

/// The delivering side of a [`completion`].
#[must_use = "dropping a completer fails its pending side"]
pub struct Completer<T> {
    shared: Option<Rc<RefCell<State<T>>>>,
}

impl<T> Completer<T> {
    pub fn complete(mut self, value: T) {
        self.settle(State::Done(value));
    }

    /// Nobody waits for the value any more.
    pub fn is_abandoned(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| Rc::strong_count(shared) == 1)
    }

    fn settle(&mut self, state: State<T>) {
        let Some(shared) = self.shared.take() else { return };
        let before = shared.replace(state);
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        self.settle(State::Dropped);
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").field("abandoned", &self.is_abandoned()).finish()
    }
}

/// The awaiting side of a [`completion`]. Awaiting it again after it was ready never ends.
#[must_use = "a pending value does nothing unless awaited"]
pub struct Pending<T> {
    source: Source<T>,
}

enum Source<T> {
    Ready(Option<T>),
    Shared(Rc<RefCell<State<T>>>),
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// Already there; allocates nothing.
    pub fn ready(value: T) -> Self {
        Self { source: Source::Ready(Some(value)) }
    }

    /// Awaiting it would not wait.
    pub fn is_settled(&self) -> bool {
        match &self.source {
            Source::Ready(_) => true,
            Source::Shared(shared) => !matches!(*shared.borrow(), State::Waiting(_)),
        }
    }

    /// The outcome, if it is there and was not taken yet.
    pub fn try_take(&mut self) -> Option<Result<T, Dropped>> {
        match &mut self.source {
            Source::Ready(value) => value.take().map(Ok),
            Source::Shared(shared) => {
                let mut state = shared.borrow_mut();
                match std::mem::replace(&mut *state, State::Taken) {
                    State::Done(value) => Some(Ok(value)),
                    State::Dropped => Some(Err(Dropped)),
                    other => {
                        *state = other;
                        None
                    }
                }
            }
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Dropped>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.try_take() {
            return Poll::Ready(outcome);
        }
        if let Source::Shared(shared) = &self.source
            && let State::Waiting(waker) = &mut *shared.borrow_mut()
        {
            match waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
        }
        Poll::Pending
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("settled", &self.is_settled()).finish()
    }
}
