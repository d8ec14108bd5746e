//! The errors of POSIX that the namespace answers with, by Linux's numbers on all architectures that Weft runs on.

use weft_bucket::BucketError;
use weft_wire::fs::FsError;

macro_rules! errno {
    ($($name:ident = $value:literal),* $(,)?) => {
        $(pub const $name: FsError = FsError::Errno($value);)*
    };
}

errno! {
    EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, EAGAIN = 11, EACCES = 13, EEXIST = 17, ENOTDIR = 20, EISDIR = 21, EINVAL = 22,
    EFBIG = 27, ENOSPC = 28, EMLINK = 31, ERANGE = 34, EDEADLK = 35, ENAMETOOLONG = 36, ENOLCK = 37, ENOTEMPTY = 39, ENODATA = 61,
    EOPNOTSUPP = 95, ESTALE = 116,
}

/// What a client hears of a bucket's error.
pub fn of_bucket(error: BucketError) -> FsError {
    match error {
        BucketError::NoSpace => ENOSPC,
        BucketError::Unreadable(_) | BucketError::Corrupt(_) => {
            tracing::error!(%error, "a request failed");
            EIO
        }
        BucketError::Bounds(_) => EINVAL,
        BucketError::Deposed(_)
        | BucketError::Stopped
        | BucketError::NotReady(_)
        | BucketError::Gone(_)
        | BucketError::Recover(_) => FsError::NotReady(error.to_string()),
    }
}
