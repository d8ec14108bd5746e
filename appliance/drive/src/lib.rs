//! Raw block devices and what Weft keeps on them.
//!
//! [`Drive`] is the device: `uring` for files and block devices, `mem` for the simulator, `volatile` to make a
//! missing flush show. [`FormattedDrive`] is a device that carries Weft's on-drive format (docs/on-drive-format.md).
//! [`DriveServer`] answers `wire::drive` requests for one such drive, [`DriveService`] for all drives of a core.
#![deny(unsafe_code)]

pub mod device;
pub mod format;
pub mod formatted;
pub mod inspect;
pub mod mem;
mod promise;
mod ring;
pub mod server;
pub mod service;
pub mod uring;
pub mod volatile;
mod zones;

pub use device::{Drive, DriveError};
pub use formatted::{ConfigError, ConfigSlot, FormatError, FormatOptions, FormattedDrive, OpenError};
pub use server::{DriveOptions, DriveServer, Writes};
pub use service::DriveService;
