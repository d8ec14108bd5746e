use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use super::Notify;

/// A value that changes, and those who wait for it to. Clones are the same.
pub struct Watch<T> {
    inner: Rc<Inner<T>>,
}

struct Inner<T> {
    value: RefCell<T>,
    version: Cell<u64>,
    changed: Notify,
}

impl<T> Watch<T> {
    pub fn new(value: T) -> Self {
        Self { inner: Rc::new(Inner { value: RefCell::new(value), version: Cell::new(0), changed: Notify::new() }) }
    }

    pub fn set(&self, value: T) {
        self.update(|present| *present = value);
    }

    /// Changes the value in place. `change` must not use this watch.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.inner.value.borrow_mut());
        self.inner.version.set(self.inner.version.get() + 1);
        self.inner.changed.notify_all();
        result
    }

    pub fn get(&self) -> T
    where
        T: Clone,
    {
        self.inner.value.borrow().clone()
    }

    /// Looks at the value. `look` must not change it.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.inner.value.borrow())
    }

    /// Rises with each change.
    pub fn version(&self) -> u64 {
        self.inner.version.get()
    }

    /// Waits for the first change after this call (not after the first poll).
    pub fn changed(&self) -> impl Future<Output = ()> + use<T> {
        self.changed_since(self.version())
    }

    /// Waits until the version is not `version` any more.
    pub fn changed_since(&self, version: u64) -> impl Future<Output = ()> + use<T> {
        let inner = Rc::clone(&self.inner);
        async move {
            while inner.version.get() == version {
                inner.changed.notified().await;
            }
        }
    }

    /// Waits until the value satisfies `is_met`.
    pub async fn wait_for(&self, mut is_met: impl FnMut(&T) -> bool) {
        loop {
            let version = self.version();
            if self.with(&mut is_met) {
                return;
            }
            self.changed_since(version).await;
        }
    }
}

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("version", &self.version()).field("value", &self.inner.value).finish()
    }
}
