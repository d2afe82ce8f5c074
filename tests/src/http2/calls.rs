//! Calls of gRPC, over HTTP/2.

use super::{CANCEL, CLIENT, END_STREAM, Fields, SERVER, Talk, message, request, reset, response};
use crate::dialogue::{Dialogue, End};

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn call<'a>(path: &str, more: &[(&'a str, &str)]) -> Fields<'a> {
    request("POST", path, &[&[("te", "trailers"), GRPC], more].concat())
}

impl Talk {
    fn call(self, stream: u32, path: &str) -> Self {
        self.head(CLIENT, stream, &call(path, &[]), 0)
    }

    /// The head of a response with messages.
    fn reply(self, stream: u32) -> Self {
        self.head(SERVER, stream, &response(200, &[GRPC]), 0)
    }

    fn status(self, stream: u32, status: &str) -> Self {
        self.trailers(SERVER, stream, &[("grpc-status", status)])
    }
}

pub(super) fn dialogues() -> Vec<Dialogue> {
    let web = ("content-type", "application/grpc-web+proto");
    let text = ("content-type", "application/grpc-web-text");
    let three = [message(b"one"), message(b""), message(b"three")].concat();
    let trailers = b"\x80\0\0\0\x0fgrpc-status:0\r\n";
    let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    vec![
        Talk::new()
            .head(
                CLIENT,
                1,
                &call(
                    "/shop.Cart/Add",
                    &[("grpc-timeout", "150m"), ("user-agent", "grpc-go/1.80.0"), parent],
                ),
                0,
            )
            .last(CLIENT, 1, &message(b"apples"))
            .reply(1)
            .data(SERVER, 1, &message(b"added"))
            .trailers(SERVER, 1, &[("grpc-status", "0"), ("grpc-message", "")])
            .call(3, "/shop.Cart/Get")
            .last(CLIENT, 3, &message(b"apples"))
            .reply(3)
            .trailers(SERVER, 3, &[("grpc-status", "5"), ("grpc-message", "no%20such%20cart")])
            .dialogue("calls", &["gRPC shop.Cart/Add OK 1>1", "gRPC shop.Cart/Get NOT_FOUND 1>0"]),
        Talk::new()
            .call(1, "/shop.Stock/Watch")
            .last(CLIENT, 1, &message(b"all"))
            .reply(1)
            .data(SERVER, 1, &message(b"one"))
            .call(3, "/shop.Stock/Load")
            .data(CLIENT, 3, &message(b"first"))
            .data(SERVER, 1, &message(b"two"))
            .data(CLIENT, 3, &message(b"second"))
            .data(CLIENT, 3, b"")
            .data(SERVER, 1, &message(&[0; 200]))
            .last(CLIENT, 3, &message(b"third"))
            .status(1, "14")
            .reply(3)
            .data(SERVER, 3, &message(b"loaded"))
            .status(3, "0")
            .call(5, "/shop.Stock/Talk")
            .reply(5)
            .data(CLIENT, 5, &message(b"a"))
            .data(SERVER, 5, &message(b"b"))
            .data(CLIENT, 5, &message(b"c"))
            .data(SERVER, 5, &message(b"d"))
            .data(SERVER, 5, &message(b"e"))
            .last(CLIENT, 5, b"")
            .status(5, "0")
            .dialogue(
                "calls with streams of messages",
                &[
                    "gRPC shop.Stock/Watch UNAVAILABLE 1>3",
                    "gRPC shop.Stock/Load OK 3>1",
                    "gRPC shop.Stock/Talk OK 2>3",
                ],
            ),
        Talk::new()
            .call(1, "/shop.Cart/Many")
            .data(CLIENT, 1, &three[..2])
            .data(CLIENT, 1, &three[2..7])
            .last(CLIENT, 1, &three[7..])
            .reply(1)
            .data(SERVER, 1, &three)
            .data(SERVER, 1, &[&three[..], &message(b"cut in two")[..9]].concat())
            .data(SERVER, 1, &message(b"cut in two")[9..])
            .status(1, "0")
            .dialogue("messages across frames", &["gRPC shop.Cart/Many OK 3>7"]),
        Talk::new()
            .call(1, "/shop.Cart/Gone")
            .last(CLIENT, 1, &message(b"x"))
            .head(SERVER, 1, &response(200, &[GRPC, ("grpc-status", "12")]), END_STREAM)
            .call(3, "/shop.Cart/Odd")
            .last(CLIENT, 3, &message(b"x"))
            .head(SERVER, 3, &response(200, &[GRPC, ("grpc-status", "99")]), END_STREAM)
            .dialogue(
                "calls that are refused at once",
                &["gRPC shop.Cart/Gone UNIMPLEMENTED 1>0", "gRPC shop.Cart/Odd 99 1>0"],
            ),
        Talk::new()
            .call(1, "/shop.Cart/Late")
            .last(CLIENT, 1, &message(b"x"))
            .say(CLIENT, reset(1, CANCEL))
            .call(3, "/shop.Cart/Broken")
            .data(CLIENT, 3, &message(b"x"))
            .reply(3)
            .data(SERVER, 3, &message(b"y"))
            .say(SERVER, reset(3, 2))
            .dialogue(
                "calls without a status",
                &[
                    "gRPC shop.Cart/Late - 1>0 outcome=aborted error=CANCEL",
                    "gRPC shop.Cart/Broken - 1>1 outcome=stream_reset error=INTERNAL_ERROR",
                ],
            ),
        Talk::new()
            .call(1, "/shop.Cart/Proxied")
            .last(CLIENT, 1, &message(b"x"))
            .head(SERVER, 1, &response(502, &[("content-type", "text/html")]), 0)
            .last(SERVER, 1, b"<html>bad gateway</html>")
            .call(3, "/shop.Cart/Empty")
            .last(CLIENT, 3, &message(b"x"))
            .close(3, 503)
            .dialogue(
                "calls that a proxy answers",
                &["gRPC shop.Cart/Proxied - 1>-", "gRPC shop.Cart/Empty - 1>0"],
            ),
        Talk::new()
            .head(CLIENT, 1, &request("POST", "/shop.Cart/Web", &[web]), 0)
            .last(CLIENT, 1, &message(b"x"))
            .head(SERVER, 1, &response(200, &[web]), 0)
            .data(SERVER, 1, &message(b"answer"))
            .last(SERVER, 1, trailers)
            .head(CLIENT, 3, &request("POST", "/shop.Cart/Text", &[text]), 0)
            .last(CLIENT, 3, b"AAAAAAJoaQ==")
            .head(SERVER, 3, &response(200, &[text]), 0)
            .last(SERVER, 3, b"AAAAAAJoaQ==gAAAACJncnBjLXN0YXR1czogNQ0KR1JQQy1NZXNzYWdlOiBubw0K")
            .dialogue(
                "calls of the web",
                &["gRPC shop.Cart/Web OK 1>1", "gRPC shop.Cart/Text NOT_FOUND 1>1"],
            ),
        Talk::new()
            .get(1, "/page")
            .call(3, "/shop.Cart/Beside")
            .answer(1, 200)
            .last(CLIENT, 3, &message(b"x"))
            .last(SERVER, 1, b"page")
            .reply(3)
            .data(SERVER, 3, &message(b"y"))
            .call(5, "/shop.Cart/Left")
            .data(CLIENT, 5, &message(b"x"))
            .status(3, "4")
            .dialogue(
                "calls beside others",
                &[
                    "GET /page 200 4",
                    "gRPC shop.Cart/Beside DEADLINE_EXCEEDED 1>1",
                    "gRPC shop.Cart/Left - 1>0 outcome=aborted",
                ],
            )
            .ending(End::Client)
            .last(),
    ]
}
