//! Amounts of CPU and memory as Kubernetes writes them, parsed strictly, so that a typing error is an error and two
//! spellings of one amount are equal.

use std::fmt;
use std::str::FromStr;

/// An amount above zero: `250m`, `0.5`, `64Mi`, `1e3`.
#[derive(Debug, Clone)]
pub struct Quantity {
    text: String,
    nano: u128,
}

const NANO: u128 = 1_000_000_000;

impl Quantity {
    /// The amount in whole units, rounded up: `1500m` is 2.
    pub fn ceil(&self) -> u128 {
        self.nano.div_ceil(NANO)
    }

    /// The same amount of 0 and more, for comparison with what others wrote.
    pub(crate) fn parse_any(text: &str) -> Option<u128> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 20 {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let (multiplier, divisor) = unit(suffix)?;
        digits.checked_mul(multiplier)?.checked_mul(NANO)?.checked_div(divisor.checked_mul(scale)?)
    }
}

/// What a suffix multiplies and divides by.
fn unit(suffix: &str) -> Option<(u128, u128)> {
    let binary = |power: u32| (1u128 << (10 * power), 1);
    let decimal = |power: u32| (10u128.pow(power), 1);
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?;
            match power.strip_prefix('-') {
                Some(power) => (1, 10u128.checked_pow(power.parse().ok().filter(|it| *it <= 9)?)?),
                None => decimal(power.parse().ok().filter(|it| *it <= 15)?),
            }
        }
    })
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Self::parse_any(text) {
            Some(0) => Err(format!("{text:?} is nothing; an amount is larger than zero")),
            Some(nano) => Ok(Self { text: text.to_owned(), nano }),
            None => Err(format!("{text:?} is no amount such as 100m, 0.5, 64Mi")),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nano.cmp(&other.nano)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_compared_by_value() {
        let parse = |text: &str| text.parse::<Quantity>().unwrap();
        for (a, b) in
            [("0.5", "500m"), ("1", "1000m"), ("64Mi", "67108864"), ("1e3", "1k"), ("1.5Gi", "1536Mi")]
        {
            assert_eq!(parse(a), parse(b), "{a} {b}");
        }
        assert!(parse("100m") < parse("0.2") && parse("1G") < parse("1Gi"));
        assert_eq!((parse("1500m").ceil(), parse("2").ceil(), parse("1m").ceil()), (2, 2, 1));
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in [
            "",
            "0",
            "0m",
            "-1",
            "+1",
            "1.2.3",
            "m",
            ".",
            "1 Gi",
            "1gi",
            "1mi",
            "half",
            "1e",
            "1e99",
            "1,5",
            "1Mib",
            "0x10",
            "NaN",
            "99999999999999999999999",
        ] {
            assert!(wrong.parse::<Quantity>().is_err(), "{wrong:?}");
        }
    }
}
