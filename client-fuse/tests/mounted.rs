//! Real system calls on a real mount of a filesystem in memory. Needs root and /dev/fuse.

mod memory;

use memory::{Memory, Shared};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, Flock, FlockArg, OFlag, RenameFlags};
use nix::mount::MntFlags;
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::thread::JoinHandleExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use weft_fuse::ReaddirPlus;
use weft_fuse::mount::MountError;
use weft_fuse::session::{Session, SessionError, SessionOptions};

const THREADS: usize = 2;

/// A mount that goes away with its test.
struct Mount {
    directory: PathBuf,
    shared: Shared,
    session: Option<JoinHandle<Result<(), SessionError>>>,
}

impl Mount {
    fn new(readdirplus: ReaddirPlus) -> Self {
        let directory = std::env::temp_dir().join(format!("weft-fuse-test-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let options = SessionOptions { threads: THREADS, readdirplus, ..SessionOptions::default() };
        let session = Session::mount(&directory, options).unwrap();
        let shared = Shared::new();
        let for_threads = shared.clone();
        let session = std::thread::spawn(move || session.run(move |thread, _| Memory::new(&for_threads, thread)));
        let mount = Self { directory, shared, session: Some(session) };
        assert_eq!(mount.type_shown().as_deref(), Some("fuse.weft"), "tests on the wrong filesystem would say nothing");
        mount
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn type_shown(&self) -> Option<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' '));
        fields.find_map(|mut line| (line.nth(1) == self.directory.to_str()).then(|| line.next().map(str::to_owned)))?
    }

    fn join(&mut self) -> Result<(), SessionError> {
        self.session.take().unwrap().join().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_some() {
            let _ = nix::mount::umount2(&self.directory, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
            let _ = self.session.take().map(JoinHandle::join);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + (index >> 8)) as u8).collect()
}

#[test]
fn files_do_what_files_do() {
    let mount = Mount::new(ReaddirPlus::Off);
    let path = mount.path("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path).unwrap();
    file.write_all(b"hello").unwrap();
    file.write_all_at(b"world", 10_000).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!((content.len(), &content[..5], &content[10_000..]), (10_005, &b"hello"[..], &b"world"[..]));
    assert!(content[5..10_000].iter().all(|&byte| byte == 0));

    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777, metadata.nlink()), (10_005, 0o640, 1));
    assert!(metadata.created().is_ok(), "statx reaches the filesystem");
    file.set_len(3).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hel");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let long_ago = std::time::UNIX_EPOCH - Duration::from_millis(1500);
    file.set_modified(long_ago).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), long_ago);

    let mut appender = OpenOptions::new().append(true).open(&path).unwrap();
    appender.write_all(b"lo").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");

    fs::remove_file(&path).unwrap();
    file.write_all_at(b"J", 0).unwrap();
    let mut unlinked = [0; 5];
    file.read_exact_at(&mut unlinked, 0).unwrap();
    assert_eq!(&unlinked, b"Jello");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop((file, appender));
    eventually("the last close forgets the file", || mount.shared.lock().node_count() == 1);
}

#[test]
fn names_do_what_names_do() {
    let mount = Mount::new(ReaddirPlus::Off);
    let (a, b) = (mount.path("a"), mount.path("b"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    let rename = |flags| nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &a, nix::fcntl::AT_FDCWD, &b, flags);
    assert_eq!(rename(RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    rename(RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert_eq!(fs::metadata(&a).unwrap_err().raw_os_error(), Some(libc::ENOENT));

    fs::hard_link(&b, &a).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().ino(), fs::metadata(&b).unwrap().ino());
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("b", mount.path("link")).unwrap();
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("b"));
    assert_eq!(fs::read(mount.path("link")).unwrap(), b"b");

    fs::create_dir(mount.path("dir")).unwrap();
    fs::write(mount.path("dir/inner"), b"").unwrap();
    assert_eq!(fs::remove_dir(mount.path("dir")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_dir_all(mount.path("dir")).unwrap();
    nix::unistd::mkfifo(&mount.path("fifo"), Mode::from_bits_truncate(0o644)).unwrap();
    assert_eq!(fs::metadata(mount.path("fifo")).unwrap().mode() & libc::S_IFMT, libc::S_IFIFO);

    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
    let unnamed = nix::fcntl::open(&mount.directory, flags, Mode::from_bits_truncate(0o600)).unwrap();
    nix::unistd::write(&unnamed, b"unnamed").unwrap();
    let by_fd = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    let here = nix::fcntl::AT_FDCWD;
    nix::unistd::linkat(here, by_fd.as_str(), here, &mount.path("named"), AtFlags::AT_SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read(mount.path("named")).unwrap(), b"unnamed");

    let statfs = nix::sys::statvfs::statvfs(&mount.directory).unwrap();
    assert_eq!((statfs.blocks(), statfs.blocks_available(), statfs.name_max()), (1000, 400, 255));
}

#[test]
fn large_io_arrives_whole_and_aligned() {
    const MIB: usize = 1 << 20;
    let mount = Mount::new(ReaddirPlus::Off);
    let path = mount.path("large");
    let data = pattern(3 * MIB + 77);
    fs::write(&path, &data).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    {
        let seen = mount.shared.lock().seen.clone();
        assert_eq!((seen.write_bytes_max, seen.writes_unaligned), (MIB, 0));
    }

    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut block = weft_reactor::AlignedBuf::with_len(MIB);
    block.as_mut_slice().copy_from_slice(&pattern(MIB + 5)[5..]);
    direct.write_all_at(block.as_slice(), 4096).unwrap();
    let mut back = weft_reactor::AlignedBuf::with_len(MIB);
    direct.read_exact_at(back.as_mut_slice(), 4096).unwrap();
    assert!(back.as_slice() == block.as_slice());
    assert_eq!(mount.shared.lock().seen.writes_unaligned, 0);

    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let len = std::num::NonZeroUsize::new(2 * MIB).unwrap();
    let both = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
    let shared = nix::sys::mman::MapFlags::MAP_SHARED;
    // SAFETY: a fresh mapping at an address of the kernel's choice; it is unmapped below and the slice ends before.
    let map = unsafe { nix::sys::mman::mmap(None, len, both, shared, &file, 0) }.unwrap();
    {
        // SAFETY: the mapping is `len` bytes long, and the file does not shrink while it is used.
        let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>().as_ptr(), len.get()) };
        assert!(bytes[..4096] == data[..4096] && bytes[4096..4096 + MIB] == *block.as_slice());
        bytes[5000..5004].copy_from_slice(b"mmap");
    }
    // SAFETY: the range is exactly the mapping made above, and nothing refers to it any more.
    unsafe {
        nix::sys::mman::msync(map, len.get(), nix::sys::mman::MsFlags::MS_SYNC).unwrap();
        nix::sys::mman::munmap(map, len.get()).unwrap();
    }
    let mut word = [0; 4];
    file.read_exact_at(&mut word, 5000).unwrap();
    assert_eq!(&word, b"mmap");
}

#[test]
fn holes_space_and_xattrs_reach_the_filesystem() {
    let mount = Mount::new(ReaddirPlus::Off);
    let path = mount.path("file");
    fs::write(&path, [7; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&file, punch, 0, 4096).unwrap();
    let content = fs::read(&path).unwrap();
    assert!(content[..4096].iter().all(|&byte| byte == 0) && content[4096..].iter().all(|&byte| byte == 7));
    nix::fcntl::fallocate(&file, FallocateFlags::empty(), 0, 10_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10_000);
    let lseek = |offset, whence| nix::unistd::lseek(&file, offset, whence);
    assert_eq!(lseek(5, nix::unistd::Whence::SeekHole), Ok(10_000));
    assert_eq!(lseek(20_000, nix::unistd::Whence::SeekData), Err(Errno::ENXIO));
    file.sync_all().unwrap();
    nix::unistd::syncfs(&file).unwrap();

    let name = c"user.weft";
    let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let value = pattern(3000);
    let mut room = vec![0_u8; 4096];
    // SAFETY: the strings end in zero bytes, the buffers are as long as said.
    let (set, size, got, short, listed) = unsafe {
        let (path, name) = (c_path.as_ptr(), name.as_ptr());
        let set = libc::setxattr(path, name, value.as_ptr().cast(), value.len(), 0);
        let size = libc::getxattr(path, name, std::ptr::null_mut(), 0);
        let got = libc::getxattr(path, name, room.as_mut_ptr().cast(), room.len());
        let short = libc::getxattr(path, name, room.as_mut_ptr().cast(), 100);
        let short = (short, Errno::last());
        (set, size, got, short, libc::listxattr(path, std::ptr::null_mut(), 0))
    };
    assert_eq!((set, size, got, short, listed), (0, 3000, 3000, (-1, Errno::ERANGE), 10));
    assert!(room[..3000] == value);
    // SAFETY: as above; the request names no buffer.
    let ioctl = unsafe { libc::ioctl(file.as_raw_fd(), 0x1234) };
    assert_eq!((ioctl, Errno::last()), (-1, Errno::ENOTTY));
}

fn list_ten_thousand(readdirplus: ReaddirPlus) {
    const ENTRIES: usize = 10_000;
    let mount = Mount::new(readdirplus);
    let directory = mount.path("many");
    fs::create_dir(&directory).unwrap();
    for index in 0..ENTRIES {
        File::create(directory.join(format!("entry-{index}"))).unwrap();
    }
    let names: HashSet<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), ENTRIES);
    let sizes: u64 = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(sizes, 0);

    // Go back to a place in the middle, after entries around it were removed.
    let path = std::ffi::CString::new(directory.to_str().unwrap()).unwrap();
    let next_name = |stream| {
        // SAFETY: the stream is open; the entry is read before the next call.
        unsafe {
            let entry = libc::readdir(stream);
            assert!(!entry.is_null());
            std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_str().unwrap().to_owned()
        }
    };
    // SAFETY: the path ends in a zero byte; the stream is closed once, at the end.
    let stream = unsafe { libc::opendir(path.as_ptr()) };
    assert!(!stream.is_null());
    for _ in 0..5000 {
        next_name(stream);
    }
    // SAFETY: the stream is open.
    let place = unsafe { libc::telldir(stream) };
    let expected = next_name(stream);
    for _ in 0..1000 {
        fs::remove_file(directory.join(next_name(stream))).unwrap();
    }
    // SAFETY: the place came from this stream.
    unsafe { libc::seekdir(stream, place) };
    assert_eq!(next_name(stream), expected);
    // SAFETY: the stream is open and not used afterwards.
    unsafe { libc::closedir(stream) };
    fs::remove_dir_all(&directory).unwrap();
    eventually("the kernel forgets what is gone", || mount.shared.lock().node_count() == 1);
}

#[test]
fn a_large_directory_lists_and_seeks() {
    list_ten_thousand(ReaddirPlus::Off);
}

#[test]
fn a_large_directory_lists_and_seeks_with_attributes() {
    list_ten_thousand(ReaddirPlus::Auto);
}

fn set_record_lock(file: &File, typ: i32, command: i32) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = typ as i16;
    // SAFETY: the lock outlives the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) }).map(drop)
}

extern "C" fn do_nothing(_: libc::c_int) {}

#[test]
fn a_signal_ends_the_wait_for_a_lock() {
    let mount = Mount::new(ReaddirPlus::Off);
    let path = mount.path("file");
    let holder = File::create(&path).unwrap();
    set_record_lock(&holder, libc::F_WRLCK, libc::F_OFD_SETLK).unwrap();
    let other = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(set_record_lock(&other, libc::F_WRLCK, libc::F_OFD_SETLK), Err(Errno::EAGAIN));

    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(do_nothing),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing at all.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGALRM, &action) }.unwrap();
    for command in [libc::F_OFD_SETLKW, libc::F_SETLKW] {
        let waiting = OpenOptions::new().write(true).open(&path).unwrap();
        let waiter = std::thread::spawn(move || set_record_lock(&waiting, libc::F_WRLCK, command));
        eventually("the signal ends the wait", || {
            // SAFETY: the thread is not joined yet, so its id is valid.
            unsafe { libc::pthread_kill(waiter.as_pthread_t(), libc::SIGALRM) };
            waiter.is_finished()
        });
        assert_eq!(waiter.join().unwrap(), Err(Errno::EINTR));
    }
    assert_eq!(mount.shared.lock().seen.interrupts, 2);

    // Nothing of the interrupted requests is left, and a wait without a signal ends with the lock.
    let waiter = std::thread::spawn(move || set_record_lock(&other, libc::F_WRLCK, libc::F_OFD_SETLKW));
    drop(holder);
    assert_eq!(waiter.join().unwrap(), Ok(()));
    assert_eq!(mount.shared.lock().seen.locks_astray, 0);
}

#[test]
fn whoever_waits_can_be_killed() {
    let mount = Mount::new(ReaddirPlus::Off);
    let path = mount.path("file");
    let lock = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
    let mut waiter = Command::new("flock").arg(&path).arg("true").spawn().unwrap();
    let mut stuck =
        Command::new("stat").arg(mount.path("stuck")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(waiter.try_wait().unwrap().is_none() && stuck.try_wait().unwrap().is_none());
    waiter.kill().unwrap();
    assert!(!waiter.wait().unwrap().success());
    stuck.kill().unwrap();
    assert!(!stuck.wait().unwrap().success());
    drop(lock);
    let status = Command::new("flock").arg("--nonblock").arg(&path).arg("true").status().unwrap();
    assert!(status.success(), "the killed waiter holds nothing");
}

#[test]
fn an_unmount_ends_the_session() {
    let mut mount = Mount::new(ReaddirPlus::Off);
    let file = File::create(mount.path("file")).unwrap();
    assert_eq!(nix::mount::umount(&mount.directory), Err(Errno::EBUSY));
    drop(file);
    // The kernel sends the last close without waiting for it.
    eventually("it is no longer busy", || nix::mount::umount(&mount.directory).is_ok());
    assert_eq!(mount.join(), Ok(()));
    assert_eq!(mount.type_shown(), None);
    assert_eq!(mount.shared.lock().seen.destroyed, THREADS);
}

#[test]
fn a_lazy_unmount_waits_for_open_files() {
    let mut mount = Mount::new(ReaddirPlus::Off);
    let mut file = File::create(mount.path("file")).unwrap();
    weft_fuse::mount::unmount_lazily(&mount.directory).unwrap();
    assert_eq!(mount.type_shown(), None);
    file.write_all(b"still here").unwrap();
    assert!(!mount.session.as_ref().unwrap().is_finished());
    drop(file);
    assert_eq!(mount.join(), Ok(()));
    assert_eq!(mount.shared.lock().seen.destroyed, THREADS);
}

#[test]
fn a_forced_unmount_frees_whoever_waits() {
    let mut mount = Mount::new(ReaddirPlus::Off);
    let path = mount.path("hung");
    let hung = std::thread::spawn(move || fs::metadata(path).unwrap_err().raw_os_error());
    eventually("the request is with the filesystem", || mount.shared.lock().seen.hung == 1);
    let _ = nix::mount::umount2(&mount.directory, MntFlags::MNT_FORCE);
    assert!(matches!(hung.join().unwrap(), Some(libc::ECONNABORTED | libc::ENOTCONN)));
    assert_eq!(mount.join(), Ok(()));
    assert_eq!(mount.type_shown(), None, "a dead mount is not left behind");
}

#[test]
fn many_threads_at_once() {
    const FILES: usize = 200;
    let mount = Mount::new(ReaddirPlus::Off);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let directory = mount.path(&format!("dir-{worker}"));
            scope.spawn(move || {
                fs::create_dir(&directory).unwrap();
                for index in 0..FILES {
                    let path = directory.join(index.to_string());
                    let data = pattern(index * 300);
                    fs::write(&path, &data).unwrap();
                    assert!(fs::read(&path).unwrap() == data);
                    if index % 2 == 0 {
                        fs::remove_file(&path).unwrap();
                    }
                }
                assert_eq!(fs::read_dir(&directory).unwrap().count(), FILES / 2);
                fs::remove_dir_all(&directory).unwrap();
            });
        }
    });
    eventually("nothing is left open", || mount.shared.lock().open_count() == 0);
    let seen = mount.shared.lock().seen.clone();
    assert_eq!((seen.opens, seen.writes_unaligned), (seen.releases, 0));
    eventually("the kernel forgets what is gone", || mount.shared.lock().node_count() == 1);
}

#[test]
fn what_cannot_be_mounted_on_is_named() {
    let missing = std::env::temp_dir().join(format!("weft-fuse-missing-{}", std::process::id()));
    let error = Session::mount(&missing, SessionOptions::default()).unwrap_err();
    assert_eq!(error, MountError::Mountpoint { mountpoint: missing.clone(), errno: Errno::ENOENT });
    assert!(error.to_string().contains(missing.to_str().unwrap()));
    File::create(&missing).unwrap();
    let error = Session::mount(&missing, SessionOptions::default()).unwrap_err();
    fs::remove_file(&missing).unwrap();
    assert_eq!(error, MountError::Mountpoint { mountpoint: missing, errno: Errno::ENOTDIR });
}

#[test]
fn a_mount_that_is_never_served_goes_away() {
    let directory = std::env::temp_dir().join(format!("weft-fuse-unserved-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let session = Session::mount(&directory, SessionOptions::default()).unwrap();
    assert!(fs::read_to_string("/proc/self/mounts").unwrap().contains(directory.to_str().unwrap()));
    drop(session);
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(directory.to_str().unwrap()));
    fs::remove_dir(&directory).unwrap();
}
