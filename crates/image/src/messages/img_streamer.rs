//! CRIU's `img-streamer.proto`: requests to an image streamer (its socket).

/// CRIU's `img_streamer_request_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ImgStreamerRequestEntry {
    #[prost(string, required, tag = "1")]
    pub filename: String,
}

/// CRIU's `img_streamer_reply_entry`.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct ImgStreamerReplyEntry {
    #[prost(bool, required, tag = "1")]
    pub exists: bool,
}
