//! The agent's socket: any bytes are a question, an answer or neither, and what is understood is said again in the same words.
//!
//! The input is what stands behind the length. Source of truth: `src/agent/wire.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::agent::wire::{ANSWER, Answer, Question, length};

fuzz_target!(|data: &[u8]| {
    if let Some(question) = Question::decode(data)
        && let Some(frame) = question.encode()
    {
        let (head, body) = frame.split_first_chunk::<4>().expect("a length");
        assert_eq!(length(*head), Some(body.len()));
        assert_eq!(Question::decode(body), Some(question));
    }
    if let Some(answer) = Answer::decode(data) {
        let said = answer.encode();
        let (mark, frame) = said.split_first().expect("a mark");
        let (head, body) = frame.split_first_chunk::<4>().expect("a length");
        assert_eq!((*mark, length(*head)), (ANSWER, Some(body.len())));
        // One that is too long is cut, and may be another one then.
        if data.len() < 10_000 {
            assert_eq!(Answer::decode(body), Some(answer));
        }
    }
});
