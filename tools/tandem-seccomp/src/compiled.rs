//! From policy to BPF, and the file of it.
//!
//! The file: [`MAGIC`], then for each of [`ROLES`] the number of instructions (16 bits, little-endian) and the
//! instructions as `struct sock_filter` (linux/filter.h): 16 bits of code, 8 and 8 of jumps, 32 of operand.
//!
//! A call that no rule names is trapped (`SECCOMP_RET_TRAP`): the thread gets SIGSYS, whose handler tells which call it was
//! and ends the process. One of another architecture's table kills the process at once.
//!
//! Rules of one call are looked at in the policy's order, calls in the order of their numbers: the kernel keeps a bitmap of
//! those that need no look at arguments (since 5.11), and the hottest that does, ioctl, is the 16th of the table.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::ROLES;
use crate::policy::{Policy, PolicyError};

/// The first bytes of the file.
pub const MAGIC: &[u8; 16] = b"tandem-seccomp-1";

fn failed(error: seccompiler::BackendError) -> PolicyError {
    PolicyError::Other(format!("the policy cannot be compiled: {error}"))
}

/// The filter of a kind of thread.
///
/// # Errors
/// It is too long for a filter.
pub fn filter(policy: &Policy, role: &str) -> Result<BpfProgram, PolicyError> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    let mut free = Vec::new();
    for rule in policy.rules_of(role) {
        let of_call = rules.entry(rule.number).or_default();
        if rule.conditions.is_empty() {
            free.push(rule.number);
            continue;
        }
        let conditions = rule.conditions.iter().map(|condition| {
            let op = match condition.mask {
                u32::MAX => SeccompCmpOp::Eq,
                mask => SeccompCmpOp::MaskedEq(mask.into()),
            };
            let length = SeccompCmpArgLen::Dword;
            SeccompCondition::new(condition.argument, length, op, condition.value.into())
        });
        let conditions = conditions.collect::<Result<_, _>>().map_err(failed)?;
        of_call.push(SeccompRule::new(conditions).map_err(failed)?);
    }
    for number in free {
        // No rules in the list: whatever the arguments are.
        rules.insert(number, Vec::new());
    }
    let (other, listed) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, other, listed, TargetArch::x86_64).map_err(failed)?;
    filter.try_into().map_err(failed)
}

/// The file of a policy.
///
/// # Errors
/// A filter is too long.
pub fn file(policy: &Policy) -> Result<Vec<u8>, PolicyError> {
    let filters = ROLES.iter().map(|role| filter(policy, role));
    Ok(file_of(&filters.collect::<Result<Vec<_>, _>>()?))
}

/// The file of filters that let everything through: to see what a program does.
pub fn open_file() -> Vec<u8> {
    let everything = seccompiler::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    };
    file_of(&ROLES.map(|_| vec![everything.clone()]))
}

fn file_of(filters: &[BpfProgram]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for program in filters {
        // At most BPF_MAXINSNS, 4096.
        bytes.extend((program.len() as u16).to_le_bytes());
        for instruction in program {
            bytes.extend(instruction.code.to_le_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_le_bytes());
        }
    }
    bytes
}
