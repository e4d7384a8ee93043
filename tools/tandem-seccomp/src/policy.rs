//! The policy's document.
//!
//! ```json
//! {
//!   "about": ["what this is"],
//!   "constants": { "KVM_RUN": "0xae80" },
//!   "includes": { "main": ["io"] },
//!   "threads": {
//!     "vcpu": [
//!       { "call": "ioctl", "if": ["arg1 = KVM_RUN"], "why": "runs the guest" }
//!     ]
//!   }
//! }
//! ```
//!
//! A call is let through if a rule of its thread names it and all conditions hold: `argN = VALUE`, `argN & MASK = VALUE`. Values
//! are constants' names, or numbers. They are compared with the low 32 bits of the argument, which is all that the kernel
//! looks at where a rule asks: descriptors, commands, flags.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::{EVERY, ROLES, syscalls};

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The document is not what it must be.
    #[error("the policy is not valid JSON of its form: {0}")]
    Json(#[from] serde_json::Error),
    /// A rule is not valid.
    #[error("threads.{thread}[{index}] ({call}): {problem}")]
    Rule {
        /// The kind of thread.
        thread: String,
        /// Number of the rule.
        index: usize,
        /// Name of the call.
        call: String,
        /// What is wrong.
        problem: String,
    },
    /// Something else is not valid.
    #[error("{0}")]
    Other(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "about")]
    _about: Vec<String>,
    constants: BTreeMap<String, String>,
    #[serde(default)]
    includes: BTreeMap<String, Vec<String>>,
    threads: BTreeMap<String, Vec<RuleDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleDocument {
    call: String,
    #[serde(default, rename = "if")]
    conditions: Vec<String>,
    why: String,
    #[serde(default)]
    not_shown: Option<String>,
}

/// One condition on an argument: `argument & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Number of the argument, from 0.
    pub argument: u8,
    /// Which bits are looked at.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

impl Condition {
    fn holds(self, arguments: &[u64; 6]) -> bool {
        let argument = arguments.get(usize::from(self.argument));
        // The low half only, as the filter does.
        argument.is_some_and(|argument| *argument as u32 & self.mask == self.value)
    }
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The list that it stands in: a kind of thread, or [`EVERY`].
    pub list: String,
    /// Name of the call.
    pub call: String,
    /// Its number.
    pub number: i64,
    /// What must hold, all of it.
    pub conditions: Vec<Condition>,
    /// The same in words.
    pub text: String,
    /// What the thread needs it for.
    pub why: String,
    /// Why no test brings it about, if none does.
    pub not_shown: Option<String>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A system call as a thread makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Rule {
    /// Whether the rule lets this call through.
    pub fn allows(&self, call: &Call) -> bool {
        self.number == call.number
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(&call.arguments))
    }
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    includes: BTreeMap<String, Vec<String>>,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let document: Document = serde_json::from_str(text)?;
        let mut constants = BTreeMap::new();
        for (name, value) in &document.constants {
            let number = number(value).ok_or_else(|| {
                PolicyError::Other(format!("constants.{name}: {value} is no number of 32 bits"))
            })?;
            constants.insert(name.as_str(), number);
        }
        let known = |name: &String| ROLES.contains(&name.as_str()) || name == EVERY;
        let named = document.includes.iter().flat_map(|(name, of)| {
            let of = of.iter();
            of.chain([name])
        });
        if let Some(name) = document
            .threads
            .keys()
            .chain(named)
            .find(|name| !known(name))
        {
            return Err(PolicyError::Other(format!("{name} is no kind of thread")));
        }
        let mut used = BTreeMap::new();
        let mut rules = Vec::new();
        for (list, documents) in document.threads {
            for (index, document) in documents.into_iter().enumerate() {
                let rule = rule(&list, &document, &constants, &mut used).map_err(|problem| {
                    PolicyError::Rule {
                        thread: list.clone(),
                        index,
                        call: document.call.clone(),
                        problem,
                    }
                })?;
                rules.push(rule);
            }
        }
        if let Some(name) = constants.keys().find(|name| !used.contains_key(*name)) {
            return Err(PolicyError::Other(format!("constants.{name} is not used")));
        }
        Ok(Self {
            rules,
            includes: document.includes,
        })
    }

    /// All rules, list by list.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rules of a kind of thread: its own first, in the policy's order.
    pub fn rules_of<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a Rule> {
        let included = self.includes.get(role).into_iter().flatten();
        let lists = [role, EVERY]
            .into_iter()
            .chain(included.map(String::as_str));
        lists.flat_map(|list| self.rules.iter().filter(move |rule| rule.list == list))
    }

    /// The rules of a kind of thread that let a call through.
    pub fn matching<'a>(&'a self, role: &'a str, call: &'a Call) -> impl Iterator<Item = &'a Rule> {
        self.rules_of(role).filter(|rule| rule.allows(call))
    }

    /// The policy without one of its rules.
    ///
    /// # Errors
    /// There is no such rule.
    pub fn without(&self, rule: &str) -> Result<Self, PolicyError> {
        let mut rules = self.rules.clone();
        rules.retain(|known| known.text != rule);
        if rules.len() == self.rules.len() {
            return Err(PolicyError::Other(format!("there is no rule {rule:?}")));
        }
        Ok(Self {
            rules,
            includes: self.includes.clone(),
        })
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn rule<'a>(
    list: &str,
    document: &RuleDocument,
    constants: &BTreeMap<&'a str, u32>,
    used: &mut BTreeMap<&'a str, ()>,
) -> Result<Rule, String> {
    let number = syscalls::number(&document.call).ok_or("there is no such system call")?;
    if document.why.is_empty() || document.not_shown.as_deref() == Some("") {
        return Err("a reason is empty".into());
    }
    let mut value = |text: &str| {
        if let Some((name, value)) = constants.get_key_value(text.trim()) {
            used.insert(name, ());
            return Ok(*value);
        }
        self::number(text.trim()).ok_or_else(|| format!("{text:?} is no number and no constant"))
    };
    let mut conditions = Vec::new();
    for text in &document.conditions {
        let shape =
            || format!("{text:?} is not of the form \"argN = VALUE\" or \"argN & MASK = VALUE\"");
        let (left, right) = text.split_once('=').ok_or_else(shape)?;
        let (argument, mask) = match left.split_once('&') {
            Some((argument, mask)) => (argument, value(mask)?),
            None => (left, u32::MAX),
        };
        let argument = argument
            .trim()
            .strip_prefix("arg")
            .and_then(|n| n.parse().ok());
        let argument: u8 = argument.filter(|n| *n < 6).ok_or_else(shape)?;
        let value = value(right)?;
        if value & !mask != 0 {
            return Err(format!("{text:?} can never hold"));
        }
        conditions.push(Condition {
            argument,
            mask,
            value,
        });
    }
    let mut text = format!("{list}: {}", document.call);
    if !document.conditions.is_empty() {
        text = format!("{text} if {}", document.conditions.join(", "));
    }
    Ok(Rule {
        list: list.to_owned(),
        call: document.call.clone(),
        number,
        conditions,
        text,
        why: document.why.clone(),
        not_shown: document.not_shown.clone(),
    })
}
