package envoy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// streamer is the name under which the test's own binary is a plugin that holds
// one stream: streamer http|websocket|grpc URL. It prints "began", a dot for each
// piece that arrives in some hundred milliseconds, and "ended".
const streamer = "streamer"

// runStreamer is the program.
func runStreamer() {
	if len(os.Args) != 3 {
		fmt.Println("usage: streamer http|websocket|grpc URL")
		os.Exit(2)
	}
	err := stream(context.Background(), os.Args[1], os.Args[2])
	fmt.Println("ended", time.Now().UnixMilli(), err)
}

// A client that trusts any certificate sees the same refusals.
var anyCertificate = &tls.Config{InsecureSkipVerify: true}

func stream(ctx context.Context, kind, target string) error {
	switch kind {
	case "http":
		return streamHTTP(ctx, target)
	case "websocket":
		return streamWebSocket(ctx, target)
	case "grpc":
		return streamGRPC(ctx, target)
	}
	return fmt.Errorf("%q is no kind of stream", kind)
}

// printPieces prints what it receives.
func printPieces(next func() error) error {
	last := time.Time{}
	for first := true; ; first = false {
		if err := next(); err != nil {
			return err
		}
		if first {
			fmt.Println("began")
		}
		if time.Since(last) > 100*time.Millisecond {
			fmt.Println(".")
			last = time.Now()
		}
	}
}

func streamHTTP(ctx context.Context, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Transport{TLSClientConfig: anyCertificate, ForceAttemptHTTP2: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s", answer.Status, text)
	}
	buffer := make([]byte, 64<<10)
	return printPieces(func() error { _, err := answer.Body.Read(buffer); return err })
}

func streamWebSocket(ctx context.Context, target string) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: anyCertificate}}
	conn, answer, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		if answer != nil {
			err = fmt.Errorf("%s: %w", answer.Status, err)
		}
		return err
	}
	defer conn.CloseNow()
	return printPieces(func() error {
		if err := conn.Write(ctx, websocket.MessageText, []byte("x")); err != nil {
			return err
		}
		_, _, err := conn.Read(ctx)
		time.Sleep(10 * time.Millisecond)
		return err
	})
}

func streamGRPC(ctx context.Context, target string) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+u.Host, grpc.WithTransportCredentials(credentials.NewTLS(anyCertificate)))
	if err != nil {
		return err
	}
	defer conn.Close()
	call, err := conn.NewStream(ctx, testenv.EchoStream(), u.Path)
	if err != nil {
		return err
	}
	return printPieces(func() error {
		if err := call.SendMsg(wrapperspb.String("x")); err != nil {
			return call.RecvMsg(new(wrapperspb.StringValue)) // has the status
		}
		err := call.RecvMsg(new(wrapperspb.StringValue))
		time.Sleep(10 * time.Millisecond)
		return err
	})
}

// TestStreamer sees that the plugin of the tests holds each kind of stream.
func TestStreamer(t *testing.T) {
	api := testenv.MustUpstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	for kind, path := range map[string]string{"http": "/stream", "websocket": "/ws", "grpc": testenv.EchoChat} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- stream(ctx, kind, api.URL("", path)) }()
		testenv.Must(t, api.WaitStreams(t.Context(), 1))
		cancel()
		if err := <-ended; err == nil {
			t.Errorf("%s ended without an error", kind)
		}
		testenv.Must(t, api.WaitStreams(t.Context(), 0))
	}
}
