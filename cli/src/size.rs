//! Sizes as people write and read them.

use anyhow::{Context, Result, bail, ensure};

const UNITS: [(&str, u32); 7] =
    [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("PiB", 50), ("EiB", 60)];

/// Whole bytes, or a number with a binary unit: `10GiB`, `1.5 TiB`, `4096`.
pub fn parse(text: &str) -> Result<u64> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim();
    let shift = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, shift)) => *shift,
        None if unit.is_empty() => 0,
        None => bail!("size {text:?}: {unit:?} is no unit; use bytes, KiB, MiB, GiB, TiB or PiB, for example 10GiB"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    ensure!(fraction.len() <= 9, "size {text:?}: more than 9 digits after the point");
    let digits = |digits: &str| match digits {
        "" => Ok(0),
        _ => digits.parse::<u128>().with_context(|| format!("size {text:?} is no number; write for example 10GiB")),
    };
    ensure!(!whole.is_empty(), "size {text:?} does not start with a number; write for example 10GiB");
    let scaled = (digits(whole)?.checked_shl(shift)).filter(|bytes| bytes >> shift == digits(whole).unwrap_or(0));
    let part = (digits(fraction)? << shift) / 10u128.pow(fraction.len() as u32);
    let bytes = scaled.and_then(|bytes| bytes.checked_add(part)).and_then(|bytes| u64::try_from(bytes).ok());
    bytes.with_context(|| format!("size {text:?} is beyond {}", show(u64::MAX)))
}

/// With a unit and at most three digits before the point.
pub fn show(bytes: u64) -> String {
    let (unit, shift) = UNITS.iter().rev().find(|(_, shift)| bytes >> shift > 0).unwrap_or(&UNITS[0]);
    if *shift == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse("0").unwrap(), 0);
        assert_eq!(parse("4096").unwrap(), 4096);
        assert_eq!(parse("10GiB").unwrap(), 10 << 30);
        assert_eq!(parse(" 1.5 tib ").unwrap(), 3 << 39);
        assert_eq!(parse("0.5KiB").unwrap(), 512);
        assert_eq!(parse("15EiB").unwrap(), 15 << 60);
    }

    #[test]
    fn wrong_sizes_say_what_is_expected() {
        for (text, part) in [
            ("10GB", "is no unit"),
            ("", "does not start"),
            ("GiB", "does not start"),
            (".5GiB", "does not start"),
            ("-1", "is no unit"),
            ("1.2.3", "is no number"),
            ("16EiB", "is beyond"),
            ("340282366920938463463374607431768211455EiB", "is beyond"),
            ("1.0000000001GiB", "more than 9"),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(4 << 30), "4 GiB");
        assert_eq!(show((3 << 29) + 1), "1.5 GiB");
        assert_eq!(show(u64::MAX), "15.9 EiB");
    }
}
