//! Medians, their confidence intervals by bootstrap, and geometric means.

use serde::Serialize;

/// A median with the interval that holds it at 95% confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

const RESAMPLES: usize = 5000;

/// The median of `values` and its interval (percentile bootstrap, Efron 1979). The draws
/// are the same in every run, so the same values give the same interval.
pub fn estimate(values: &[f64]) -> Option<Estimate> {
    let middle = median(values)?;
    let mut draw = Draw(0x2545_f491_4f6c_dd1d);
    let mut resample = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            resample.fill_with(|| values[draw.below(values.len())]);
            median(&resample).expect("not empty")
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some(Estimate {
        median: middle,
        low: medians[RESAMPLES / 40],
        high: medians[RESAMPLES - 1 - RESAMPLES / 40],
    })
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The geometric mean of positive values.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

/// Marsaglia's xorshift64*.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}
