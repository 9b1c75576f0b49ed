package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// Client talks to one sidecar. It keeps no connection open between calls and is
// safe for concurrent use.
type Client struct {
	path  string
	http  http.Client
	err   error
	print io.Writer // requests go here instead; nil: they are sent
}

// ErrPrinted is the error of a call whose request was printed and not sent.
var ErrPrinted = errors.New("the request was printed and not sent")

// ErrNoSidecar is the error of a call when nothing listens on the socket.
var ErrNoSidecar = errors.New("no sidecar answers")

// Dial returns a client for the socket PATH or unix:PATH. It connects with the
// first call.
func Dial(socket string) *Client {
	path, err := socketPath(socket)
	c := &Client{path: path, err: err}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	return c
}

// PrintTo has every later call print its request to w, as a command for curl, and
// return ErrPrinted.
func (c *Client) PrintTo(w io.Writer) { c.print = w }

// printCurl prints a request as a shell command. The path of the socket is quoted
// for a POSIX shell; targets and bodies are made here and hold no quotes.
func (c *Client) printCurl(method, target string, body []byte) error {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	command := []string{"curl", "--unix-socket", quote(c.path), "--request", method}
	if body != nil {
		command = append(command, "--header", "'Content-Type: application/json'", "--data", quote(string(body)))
	}
	command = append(command, quote("http://sidecar"+target))
	if _, err := fmt.Fprintln(c.print, strings.Join(command, " ")); err != nil {
		return err
	}
	return ErrPrinted
}

// Socket returns the absolute path of the socket.
func (c *Client) Socket() string { return c.path }

// PeerPID returns the process that listens on the socket, as the kernel recorded it
// when it called listen (SO_PEERCRED, unix(7)): also of one that does not answer. It
// is 0 for a process of a PID namespace that cannot be seen from here.
func (c *Client) PeerPID(ctx context.Context) (int, error) {
	if c.err != nil {
		return 0, fmt.Errorf("find sidecar: %w", c.err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return 0, fmt.Errorf("find sidecar: %w", err)
	}
	defer conn.Close()
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("find sidecar: not a unix connection")
	}
	peer, err := unixsock.PeerOf(socket)
	return peer.PID, err
}

// Status returns what is in force.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Usage returns usage against limits.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	return get[Usage](ctx, c, "/v1/usage")
}

// Revocations returns the revocations in force.
func (c *Client) Revocations(ctx context.Context) ([]authz.Revocation, error) {
	r, err := get[Revocations](ctx, c, "/v1/revocations")
	return r.Revocations, err
}

// Revoke revokes access. With a result, it is revoked even if the result lists failures.
func (c *Client) Revoke(ctx context.Context, r RevokeRequest) (RevokeResult, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return RevokeResult{}, fmt.Errorf("encode revocation: %w", err)
	}
	return call[RevokeResult](ctx, c, http.MethodPost, "/v1/revocations", body)
}

// Restore lifts a revocation.
func (c *Client) Restore(ctx context.Context, id, reason string) (RestoreResult, error) {
	target := "/v1/revocations/" + url.PathEscape(id) + "?reason=" + url.QueryEscape(reason)
	return call[RestoreResult](ctx, c, http.MethodDelete, target, nil)
}

// Reload loads the files again. An *Error with CodeInvalid lists why they were refused.
func (c *Client) Reload(ctx context.Context) (ReloadResult, error) {
	return call[ReloadResult](ctx, c, http.MethodPost, "/v1/reload", nil)
}

// maxRecord is longer than any audit record.
const maxRecord = 1 << 20

// Decisions calls each with audit records, oldest first, until there are no
// more, ctx ends or each fails. When following, the end of ctx is no error.
// The line is valid until each returns.
func (c *Client) Decisions(ctx context.Context, q DecisionQuery, each func(line []byte) error) error {
	values := url.Values{}
	if q.Limit != 0 {
		values.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Follow {
		values.Set("follow", "true")
	}
	if q.Kind != "" {
		values.Set("kind", q.Kind)
	}
	if q.Decision != "" {
		values.Set("decision", q.Decision)
	}
	response, err := c.do(ctx, http.MethodGet, "/v1/decisions?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		if err := each(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && (!q.Follow || ctx.Err() == nil) {
		return fmt.Errorf("read decisions: %w", err)
	}
	return nil
}

func get[T any](ctx context.Context, c *Client, target string) (T, error) {
	return call[T](ctx, c, http.MethodGet, target, nil)
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

func call[T any](ctx context.Context, c *Client, method, target string, body []byte) (T, error) {
	var value T
	response, err := c.do(ctx, method, target, body)
	if err != nil {
		return value, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&value); err != nil {
		return value, fmt.Errorf("decode answer of %s: %w", target, err)
	}
	return value, nil
}

// do sends a request and returns the answer if it is a success.
func (c *Client) do(ctx context.Context, method, target string, body []byte) (*http.Response, error) {
	if c.err != nil {
		return nil, fmt.Errorf("call sidecar: %w", c.err)
	}
	if c.print != nil {
		return nil, c.printCurl(method, target, body)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://sidecar"+target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("call sidecar: %w", err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s", ErrNoSidecar, c.path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("call sidecar: %s may be used by root and the sidecar's user only: %w", c.path, err)
	case err != nil && ctx.Err() == nil:
		// Most likely it closed the connection without a word.
		return nil, fmt.Errorf("call sidecar on %s, which serves root and its own user only: %w", c.path, err)
	case err != nil:
		return nil, fmt.Errorf("call sidecar: %w", err)
	case response.StatusCode == http.StatusOK:
		return response, nil
	}
	defer response.Body.Close()
	var e Error
	if err := json.NewDecoder(io.LimitReader(response.Body, maxBody)).Decode(&e); err != nil || e.Message == "" {
		return nil, fmt.Errorf("call sidecar: it answered %s", response.Status)
	}
	return nil, &e
}
