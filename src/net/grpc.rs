//! The gRPC health check.
//!
//! The protocol is two messages of one field each, which are written down here; the CRI
//! alone has a description of its own.

use http::uri::PathAndQuery;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{GrpcFailure, NetError, Result};

#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub status: i32,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            ServingStatus::Unknown => "UNKNOWN",
            ServingStatus::Serving => "SERVING",
            ServingStatus::NotServing => "NOT_SERVING",
            ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

pub async fn check(stream: TcpStream, authority: &str, service: &str, user_agent: &str) -> Result<ServingStatus> {
    let exchange_error = |error: hyper::Error| NetError::Grpc(GrpcFailure::Other(error.to_string()));
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(exchange_error)?;
    let agent = user_agent.to_owned();
    let send = service_fn(move |mut request: http::Request<Body>| {
        if let Ok(agent) = http::HeaderValue::try_from(&agent) {
            request.headers_mut().insert(http::header::USER_AGENT, agent);
        }
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    let origin = http::Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
    let origin = origin.map_err(|error| NetError::Request(error.to_string()))?;
    let exchange = async move {
        let mut client = Grpc::with_origin(send, origin);
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let request = tonic::Request::new(CheckRequest { service: service.to_owned() });
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        client.unary(request, path, ProstCodec::<CheckRequest, CheckResponse>::default()).await
    };
    let mut exchange = std::pin::pin!(exchange);
    let answer = tokio::select! {
        biased;
        // Cancel-safe: neither is polled again after its own end, and dropping both closes
        // the connection.
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    };
    match answer {
        Ok(answer) => Ok(answer.into_inner().status()),
        Err(status) => Err(NetError::Grpc(failure(&status))),
    }
}

fn failure(status: &Status) -> GrpcFailure {
    let text = status.message().to_owned();
    match status.code() {
        Code::Unimplemented => GrpcFailure::Unimplemented(text),
        Code::DeadlineExceeded => GrpcFailure::Deadline(text),
        code => GrpcFailure::Other(format!("rpc error: code = {code:?} desc = {text}")),
    }
}
