//! ISA-L, if the machine has one: opened when the bench runs, so that nothing needs it to build.

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::process::Command;

type InitTables = unsafe extern "C" fn(k: c_int, rows: c_int, matrix: *const c_uchar, tables: *mut c_uchar);
type EncodeData = unsafe extern "C" fn(
    len: c_int,
    k: c_int,
    rows: c_int,
    tables: *mut c_uchar,
    data: *const *const c_uchar,
    coding: *const *mut c_uchar,
);

/// The library's two entry points.
#[derive(Clone, Copy)]
pub struct Isal {
    init_tables: InitTables,
    encode_data: EncodeData,
}

/// Tables of one matrix.
pub struct IsalProduct {
    isal: Isal,
    tables: Vec<u8>,
}

fn pkg_config(question: &str) -> Option<String> {
    let output = Command::new("pkg-config").args([question, "libisal"]).output().ok()?;
    let answer = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !answer.is_empty()).then_some(answer)
}

impl Isal {
    /// The ISA-L that pkg-config knows, and its version.
    pub fn find() -> Option<(Self, String)> {
        let version = pkg_config("--modversion")?;
        let path = CString::new(format!("{}/libisal.so", pkg_config("--variable=libdir")?)).ok()?;
        // SAFETY: a C library without initialisers of its own; it stays open.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        let init_tables = symbol(library, c"ec_init_tables")?;
        let encode_data = symbol(library, c"ec_encode_data")?;
        // SAFETY: the signatures are those of ISA-L's erasure_code.h, the same in all of its releases.
        let isal = unsafe {
            Self {
                init_tables: std::mem::transmute::<*mut c_void, InitTables>(init_tables),
                encode_data: std::mem::transmute::<*mut c_void, EncodeData>(encode_data),
            }
        };
        Some((isal, version))
    }

    pub fn product(self, rows: &[Vec<u8>]) -> IsalProduct {
        let matrix = rows.concat();
        let mut tables = vec![0; 32 * matrix.len()];
        let (k, rows) = (rows[0].len() as c_int, rows.len() as c_int);
        // SAFETY: the matrix has k * rows coefficients, and there are 32 bytes of tables for each.
        unsafe { (self.init_tables)(k, rows, matrix.as_ptr(), tables.as_mut_ptr()) };
        IsalProduct { isal: self, tables }
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    let name: *const c_char = name.as_ptr();
    // SAFETY: the library is open and the name ends with a zero.
    let address = unsafe { libc::dlsym(library, name) };
    (!address.is_null()).then_some(address)
}

impl IsalProduct {
    pub fn apply(&mut self, sources: &[&[u8]], out: &mut [&mut [u8]]) {
        let mut data = [std::ptr::null(); 16];
        let mut coding = [std::ptr::null_mut(); 4];
        sources.iter().zip(&mut data).for_each(|(source, pointer)| *pointer = source.as_ptr());
        out.iter_mut().zip(&mut coding).for_each(|(output, pointer)| *pointer = output.as_mut_ptr());
        // SAFETY: as many valid pointers as said, to slices of this length; at most 16 and 4 in this bench.
        unsafe {
            (self.isal.encode_data)(
                sources[0].len() as c_int,
                sources.len() as c_int,
                out.len() as c_int,
                self.tables.as_mut_ptr(),
                data.as_ptr(),
                coding.as_ptr(),
            );
        }
    }
}
