#![no_main]
//! Bytes as messages between cores: what is accepted means one thing, however often it is passed
//! on.

use libfuzzer_sys::fuzz_target;
use ringlane::codec::{
    decode_request, decode_response, encode_request, encode_response, encoded_request_bytes,
    encoded_response_bytes,
};

fuzz_target!(|message: &[u8]| {
    if let Ok(request) = decode_request(message) {
        let mut again = vec![0; encoded_request_bytes(&request)];
        encode_request(&request, &mut again);
        let arrived = decode_request(&again).expect("own encoding");
        assert_eq!(format!("{arrived:?}"), format!("{request:?}"));
    }
    if let Ok(response) = decode_response(message) {
        let mut again = vec![0; encoded_response_bytes(&response)];
        encode_response(&response, &mut again);
        let arrived = decode_response(&again).expect("own encoding");
        assert_eq!(format!("{arrived:?}"), format!("{response:?}"));
    }
});
