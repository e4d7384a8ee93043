//! One client's conversation: bytes in, requests to the service, bytes out. Knows no socket and no loop, so that all it does
//! can be tested, and fuzzed, without them.
//!
//! What it answers depends on the bytes, never on how they were cut on their way. Requests are answered in their order: while
//! one's answer is to come later, those behind it wait, in the buffer first and then in the client's socket.

use std::time::Instant;

use super::content::Pending;
use super::encode;
use super::head::{self, Framing, Manners, Parts, Refusal, Scan, bad};
use super::limits::Limits;
use super::message::{Request, Response};
use super::outbox::Letter;
use super::service::{Answer, Service, Ticket};
use super::target::Target;

/// What a connection works with.
pub struct Turn<'a, S: ?Sized> {
    /// Answers the requests.
    pub service: &'a mut S,
    /// What the client gets.
    pub limits: &'a Limits,
    /// Place of the connection.
    pub slot: u32,
    /// Number of the last request of the server.
    pub serial: &'a mut u64,
    /// The time.
    pub now: Instant,
}

/// What the connection does.
#[derive(Debug)]
enum Phase {
    /// Waits for the end of a head.
    Head,
    /// Waits for the rest of the content.
    Content(Box<Pending>),
    /// Waits for the service.
    Waiting(Ticket, Manners),
    /// The service adds to the answer.
    Streaming(Ticket, Manners),
    /// Answers nothing more.
    Closing,
}

/// A conversation.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    /// Bytes that are not used up: part of a head, or requests that have to wait.
    input: Vec<u8>,
    scan: Scan,
    /// There may be a complete request among them.
    stalled: bool,
    /// The client sends nothing more.
    ended: bool,
    /// What is refused may have bytes behind it.
    linger: bool,
    output: Vec<u8>,
    /// Bytes of the output that are sent.
    sent: usize,
    /// When the request that is not complete began.
    begun: Option<Instant>,
    /// When something came.
    last: Instant,
    /// When some of the output was taken, or had to wait first.
    taken: Instant,
}

/// What became of a connection whose time is up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// Its time is not up.
    No,
    /// It was told, and is to be closed when it has taken that.
    Told,
    /// It is to be closed.
    Over,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Head,
            input: Vec::new(),
            scan: Scan::default(),
            stalled: false,
            ended: false,
            linger: false,
            output: Vec::new(),
            sent: 0,
            begun: None,
            last: now,
            taken: now,
        }
    }

    /// Takes bytes that the client sent, and answers what is complete, within the limits of a turn.
    pub fn receive<S: Service + ?Sized>(&mut self, bytes: &[u8], turn: &mut Turn<'_, S>) {
        self.last = turn.now;
        if self.input.is_empty() {
            let used = self.work(bytes, turn);
            self.input
                .extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            self.input.extend_from_slice(bytes);
            self.resume(turn);
        }
        self.begin(turn.now);
    }

    /// Goes on with what had to wait.
    pub fn resume<S: Service + ?Sized>(&mut self, turn: &mut Turn<'_, S>) {
        let mut input = std::mem::take(&mut self.input);
        let used = self.work(&input, turn);
        input.drain(..used);
        // Not kept while there is nothing in it.
        if !input.is_empty() {
            self.input = input;
        }
        self.begin(turn.now);
    }

    /// The client sends nothing more. What it has not finished is refused; what it asked is still answered.
    pub fn end(&mut self, now: Instant) {
        self.ended = true;
        self.finish_half(now);
    }

    /// Gives what came through the outbox to the client. False: it does not read its stream, and is to be dropped.
    pub fn deliver<S: Service + ?Sized>(
        &mut self,
        ticket: Ticket,
        letter: Letter,
        turn: &mut Turn<'_, S>,
    ) -> bool {
        match (&self.phase, letter) {
            (Phase::Waiting(waiting, manners), Letter::Response(response))
                if *waiting == ticket =>
            {
                let manners = *manners;
                self.respond(&response, manners, turn.now);
            }
            (Phase::Streaming(waiting, manners), Letter::Chunk(bytes)) if *waiting == ticket => {
                let chunked = !manners.old;
                if self.unsent() > 0 && self.unsent() + bytes.len() > turn.limits.stream {
                    return false;
                }
                self.queued(turn.now);
                encode::chunk(&mut self.output, &bytes, chunked);
                return true;
            }
            (Phase::Streaming(waiting, manners), Letter::End) if *waiting == ticket => {
                let manners = *manners;
                if !manners.old {
                    self.queued(turn.now);
                    self.output.extend_from_slice(encode::LAST_CHUNK);
                }
                self.next(manners);
            }
            (Phase::Streaming(waiting, _), Letter::Lost) if *waiting == ticket => return false,
            (Phase::Waiting(waiting, _) | Phase::Streaming(waiting, _), letter)
                if *waiting == ticket =>
            {
                log::error!("api: an answer is not of the kind that was announced: {letter:?}");
                return true;
            }
            _ => return true,
        }
        // Its turn has been waited for: what is behind it goes on.
        self.resume(turn);
        true
    }

    /// Bytes for the client.
    pub fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// The client took this many of them.
    pub fn took(&mut self, bytes: usize, now: Instant) {
        self.taken = now;
        self.sent += bytes;
        if self.sent >= self.output.len() {
            self.sent = 0;
            self.output = Vec::new();
        }
    }

    /// Whether it can take in more now.
    pub fn wants_input(&self, limits: &Limits) -> bool {
        if self.ended || self.stalled {
            return false;
        }
        match self.phase {
            Phase::Head => self.unsent() <= limits.output,
            // One read is kept, so that a request behind another costs no more than one alone.
            Phase::Content(_) | Phase::Closing | Phase::Waiting(..) | Phase::Streaming(..) => true,
        }
    }

    /// Whether [`Self::resume`] has something to do.
    pub fn wants_turn(&self, limits: &Limits) -> bool {
        self.stalled && matches!(self.phase, Phase::Head) && self.unsent() <= limits.output
    }

    /// Whether the connection can be closed.
    pub fn is_over(&self) -> bool {
        self.unsent() == 0
            && match self.phase {
                Phase::Closing => self.ended || !self.linger,
                Phase::Head => self.ended && !self.stalled,
                _ => false,
            }
    }

    /// Whether all is said from this side, and what the client still sends is thrown away.
    pub(super) fn is_lingering(&self) -> bool {
        matches!(self.phase, Phase::Closing) && self.unsent() == 0
    }

    /// Bytes of memory that it holds beside its own size: what came and is not used up, and what is not taken.
    pub fn held(&self) -> usize {
        let content = match &self.phase {
            Phase::Content(pending) => pending.held(),
            _ => 0,
        };
        self.input.capacity() + content + self.output.capacity()
    }

    /// The request that waits for the service.
    pub fn ticket(&self) -> Option<Ticket> {
        match self.phase {
            Phase::Waiting(ticket, _) | Phase::Streaming(ticket, _) => Some(ticket),
            _ => None,
        }
    }

    /// Whether the answer to it is a stream.
    pub fn streams(&self) -> bool {
        matches!(self.phase, Phase::Streaming(..))
    }

    /// How little would be lost with this connection: those without a request first, then those with half of one or with
    /// answers that are not taken. None: the service works for it.
    pub(super) fn rank(&self) -> Option<(u8, Instant)> {
        match self.phase {
            Phase::Head if self.input.is_empty() && self.unsent() == 0 => Some((0, self.last)),
            Phase::Waiting(..) | Phase::Streaming(..) => None,
            _ => Some((1, self.begun.unwrap_or(self.last))),
        }
    }

    /// When the client has to have done something.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        if self.unsent() > 0 {
            return self.taken.checked_add(limits.take);
        }
        match self.phase {
            Phase::Waiting(..) | Phase::Streaming(..) => None,
            Phase::Closing => self.begun?.checked_add(limits.linger),
            Phase::Head | Phase::Content(_) => match self.begun {
                Some(begun) => begun.checked_add(limits.request),
                None => self.last.checked_add(limits.idle?),
            },
        }
    }

    /// Looks whether the client's time is up.
    pub(super) fn check(&mut self, now: Instant, limits: &Limits) -> Late {
        match self.deadline(limits) {
            Some(deadline) if deadline <= now => {}
            _ => return Late::No,
        }
        if self.unsent() == 0 && self.begun.is_some() && !matches!(self.phase, Phase::Closing) {
            let time = limits.request.as_secs_f32();
            let text = format!("the request was not complete within {time} s");
            self.refuse(&Refusal::new(408, text), now);
            return Late::Told;
        }
        Late::Over
    }

    /// Uses up what it can of the input. The bytes used.
    fn work<S: Service + ?Sized>(&mut self, input: &[u8], turn: &mut Turn<'_, S>) -> usize {
        let mut used = 0;
        let mut left = turn.limits.turn;
        self.stalled = false;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) {
            let full = left == 0 || self.unsent() > turn.limits.output;
            let step = match &mut self.phase {
                Phase::Head if full => {
                    self.stalled = true;
                    break;
                }
                // Empty lines before a request are to be ignored (RFC 9112, 2.2).
                Phase::Head if self.scan.is_new() && rest.starts_with(b"\r\n") => Ok(2),
                Phase::Head if self.scan.is_new() && rest == b"\r" => break,
                Phase::Head => match self.scan.advance(rest, turn.limits.head) {
                    Ok(None) => break,
                    Ok(Some(length)) => {
                        left -= 1;
                        self.scan = Scan::default();
                        self.request(rest, length, turn)
                    }
                    Err(refusal) => Err(refusal),
                },
                Phase::Content(pending) => match pending.advance(rest, turn.limits.body) {
                    Ok((bytes, false)) => Ok(bytes),
                    Ok((bytes, true)) => self.complete(turn).map(|()| bytes),
                    Err(refusal) => Err(refusal),
                },
                Phase::Waiting(..) | Phase::Streaming(..) => {
                    self.stalled = true;
                    break;
                }
                Phase::Closing => {
                    self.linger = true;
                    used = input.len();
                    break;
                }
            };
            match step {
                Ok(bytes) => used += bytes,
                Err(refusal) => self.refuse(&refusal, turn.now),
            }
        }
        used.min(input.len())
    }

    /// Begins a request whose head is complete: answers it, if the content is there too. The bytes used.
    fn request<S: Service + ?Sized>(
        &mut self,
        input: &[u8],
        length: usize,
        turn: &mut Turn<'_, S>,
    ) -> Result<usize, Refusal> {
        let (head, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
        let mut room = head::room();
        let parts = head::parse(head, &mut room)?;
        let manners = Manners::of(&parts, turn.limits.body)?;
        let target = Target::parse(parts.target)?;
        if manners.expects {
            self.queued(turn.now);
            self.output.extend_from_slice(encode::CONTINUE);
        }
        if let Framing::Length(bytes) = manners.framing
            && let Some(body) = rest.get(..bytes)
        {
            self.call(&parts, &target, body, manners, turn);
            return Ok(length + bytes);
        }
        self.phase = Phase::Content(Box::new(Pending::new(head, manners)));
        Ok(length)
    }

    /// Answers the request whose content is now complete.
    fn complete<S: Service + ?Sized>(&mut self, turn: &mut Turn<'_, S>) -> Result<(), Refusal> {
        let Phase::Content(pending) = std::mem::replace(&mut self.phase, Phase::Head) else {
            return Ok(());
        };
        let mut room = head::room();
        let parts = head::parse(&pending.head, &mut room)?;
        let target = Target::parse(parts.target)?;
        self.call(&parts, &target, &pending.body, pending.manners, turn);
        Ok(())
    }

    fn call<S: Service + ?Sized>(
        &mut self,
        parts: &Parts,
        target: &Target,
        body: &[u8],
        manners: Manners,
        turn: &mut Turn<'_, S>,
    ) {
        let request =
            Request::new(parts.method, &target.path, body).with(target.query, parts.headers);
        *turn.serial += 1;
        let ticket = Ticket {
            slot: turn.slot,
            serial: *turn.serial,
        };
        self.begun = None;
        match turn.service.call(&request, ticket) {
            Answer::Now(response) => self.respond(&response, manners, turn.now),
            Answer::Later => self.phase = Phase::Waiting(ticket, manners),
            Answer::Stream(kind) => {
                let chunked = !manners.old;
                let manners = Manners {
                    keep: manners.keep && chunked,
                    ..manners
                };
                self.queued(turn.now);
                encode::stream(&mut self.output, kind, manners.keep, chunked);
                if manners.head {
                    turn.service.gone(ticket);
                    self.next(manners);
                } else {
                    self.phase = Phase::Streaming(ticket, manners);
                }
            }
        }
    }

    fn respond(&mut self, response: &Response, manners: Manners, now: Instant) {
        self.queued(now);
        encode::response(&mut self.output, response, manners.keep, manners.head);
        self.next(manners);
    }

    /// Ends the connection with an answer that says why.
    fn refuse(&mut self, refusal: &Refusal, now: Instant) {
        self.queued(now);
        encode::response(&mut self.output, &refusal.response(), false, false);
        self.phase = Phase::Closing;
        self.linger = true;
        self.input = Vec::new();
        self.begun = Some(now);
    }

    /// After an answer.
    fn next(&mut self, manners: Manners) {
        self.phase = if manners.keep {
            Phase::Head
        } else {
            Phase::Closing
        };
    }

    /// Half a request, and nothing more to come.
    fn finish_half(&mut self, now: Instant) {
        let half = match self.phase {
            Phase::Head => !self.input.is_empty() && !self.stalled,
            Phase::Content(_) => true,
            _ => false,
        };
        if self.ended && half {
            self.refuse(&bad("the request is incomplete"), now);
        }
    }

    /// Notes when the first byte came of what is not complete.
    fn begin(&mut self, now: Instant) {
        match self.phase {
            Phase::Head if self.input.is_empty() || self.stalled => self.begun = None,
            Phase::Waiting(..) | Phase::Streaming(..) => self.begun = None,
            _ => {
                self.begun.get_or_insert(now);
            }
        }
        self.finish_half(now);
    }

    /// Notes when the first byte waits for the client.
    fn queued(&mut self, now: Instant) {
        if self.output.is_empty() {
            self.taken = now;
        }
    }

    fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }
}
