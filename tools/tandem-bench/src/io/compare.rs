//! How the first VMM does beside each of the others, round by round.

use serde::Serialize;

use super::jobs::Job;
use super::report::Results;
use crate::stats::Estimate;

/// How far Tandem is ahead in one figure.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The job.
    pub job: &'static str,
    /// Which of its figures.
    pub figure: &'static str,
    /// The first VMM, Tandem as a rule.
    pub of: String,
    /// The other one.
    pub with: String,
    /// Of the ratios in each round that both were measured in; above 1 where the first is better.
    pub ahead: Estimate,
    /// Number of those rounds.
    pub rounds: usize,
}

/// Compares the first with each of the others.
pub fn all(vmms: &[Results], jobs: &[&'static Job], rounds: usize) -> Vec<Comparison> {
    let Some((first, others)) = vmms.split_first() else {
        return Vec::new();
    };
    let mut comparisons = Vec::new();
    for job in jobs {
        for figure in job.figures {
            for other in others {
                let ratios: Vec<f64> = (0..rounds)
                    .filter_map(|round| {
                        let mine = first.figure(round, job, figure)?;
                        let theirs = other.figure(round, job, figure)?;
                        Some(if figure.more_is_better {
                            mine / theirs
                        } else {
                            theirs / mine
                        })
                    })
                    .collect();
                if let Some(ahead) = Estimate::of(&ratios) {
                    comparisons.push(Comparison {
                        job: job.key,
                        figure: figure.key,
                        of: first.name.clone(),
                        with: other.name.clone(),
                        ahead,
                        rounds: ratios.len(),
                    });
                }
            }
        }
    }
    comparisons
}
