//! Points of time as people read them.

const DAY_MS: i64 = 24 * 3600 * 1000;

/// UTC to the millisecond, after RFC 3339.
pub fn show(time_ns: i64) -> String {
    let ms = time_ns.div_euclid(1_000_000);
    let (days, in_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    let (year, month, day) = date(days);
    let (hours, minutes, seconds) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", in_day % 1000)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted from March, so
/// that the leap day is the last; an era is the 400 years after which the calendar repeats.
fn date(days: i64) -> (i64, i64, i64) {
    const ERA_DAYS: i64 = 400 * 365 + 97;
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH_DAYS: i64 = 719_468;
    let days = days + EPOCH_DAYS;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year = (day - day / (4 * 365) + day / (100 * 365 + 24) - day / (ERA_DAYS - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March have 31, 30, 31, 30, 31 days, and so on: 153 in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown() {
        let show_s = |seconds: i64| show(seconds * 1_000_000_000);
        assert_eq!(show(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(show(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(show_s(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(show_s(951_868_800), "2000-03-01T00:00:00.000Z");
        assert_eq!(show_s(1_763_726_400), "2025-11-21T12:00:00.000Z");
        assert_eq!(show_s(4_107_542_399), "2100-02-28T23:59:59.000Z");
        assert_eq!(show_s(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }
}
