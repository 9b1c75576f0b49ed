package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// endpoint answers a request with a value to encode, or an error.
type endpoint func(r *http.Request, actor string) (any, error)

// handler returns the API. Streams end with streaming.
func (s *Server) handler(streaming context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v1/status", methods{http.MethodGet: s.plain(s.status)})
	mux.Handle("/v1/usage", methods{http.MethodGet: s.plain(s.usage)})
	mux.Handle("/v1/decisions", methods{http.MethodGet: func(w http.ResponseWriter, r *http.Request) {
		s.decisions(streaming, w, r)
	}})
	mux.Handle("/v1/revocations", methods{
		http.MethodGet:  s.plain(s.revocations),
		http.MethodPost: s.plain(s.revoke),
	})
	mux.Handle("/v1/revocations/{id}", methods{http.MethodDelete: s.plain(s.restore)})
	mux.Handle("/v1/reload", methods{http.MethodPost: s.plain(s.reload)})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, NewError(CodeNotFound, fmt.Sprintf("there is no %.200q", r.URL.Path)))
	})
	return mux
}

// methods answers a path by method.
type methods map[string]http.HandlerFunc

// ServeHTTP calls the method's handler, or answers 405.
func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if handle, ok := m[r.Method]; ok {
		handle(w, r)
		return
	}
	var allowed []string
	for method := range m {
		allowed = append(allowed, method)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	writeError(w, NewError(CodeMethodNotAllowed, fmt.Sprintf("%.40q is not a method of %s; use %s", r.Method, r.URL.Path, strings.Join(allowed, " or "))))
}

// plain answers with one JSON value.
func (s *Server) plain(answer endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer, ok := r.Context().Value(peerKey{}).(Peer)
		if !ok {
			writeError(w, NewError(CodeInternal, "the caller is not known"))
			return
		}
		value, err := answer(r, peer.Actor())
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, value)
	}
}

func (s *Server) status(r *http.Request, _ string) (any, error) {
	if err := onlyQuery(r); err != nil {
		return nil, err
	}
	status, err := s.cfg.Status(r.Context())
	status.Checks, status.Doors, status.Grants = list(status.Checks), list(status.Doors), list(status.Grants)
	status.Revocations, status.Credentials, status.Files = list(status.Revocations), list(status.Credentials), list(status.Files)
	return status, err
}

func (s *Server) usage(r *http.Request, _ string) (any, error) {
	if err := onlyQuery(r); err != nil {
		return nil, err
	}
	usage, err := s.cfg.Usage(r.Context())
	usage.Limits = list(usage.Limits)
	return usage, err
}

func (s *Server) revocations(r *http.Request, _ string) (any, error) {
	if err := onlyQuery(r); err != nil {
		return nil, err
	}
	revocations, err := s.cfg.Revocations(r.Context())
	return Revocations{Revocations: list(revocations)}, err
}

// list returns the elements as a list that is [] in JSON when it is empty, and
// never null.
func list[T any](elements []T) []T {
	if elements == nil {
		return []T{}
	}
	return elements
}

func (s *Server) revoke(r *http.Request, actor string) (any, error) {
	var request RevokeRequest
	err := decodeBody(r, map[string]any{
		"id": &request.ID, "rule": &request.Rule, "level": &request.Level, "reason": &request.Reason,
		"incident": &request.Incident, "until": &request.Until, "all": &request.All,
	})
	if err != nil {
		return nil, err
	}
	if err := request.Validate(s.cfg.Now()); err != nil {
		return nil, NewError(CodeBadRequest, err.Error())
	}
	result, err := s.cfg.Revoke(context.WithoutCancel(r.Context()), request, actor)
	result.Failed = list(result.Failed)
	return result, err
}

func (s *Server) restore(r *http.Request, actor string) (any, error) {
	if err := onlyQuery(r, "reason"); err != nil {
		return nil, err
	}
	reason := r.URL.Query().Get("reason")
	if err := ValidateReason(reason); err != nil {
		return nil, NewError(CodeBadRequest, err.Error())
	}
	id := r.PathValue("id")
	if len(id) > maxRule || !printable(id) {
		return nil, NewError(CodeBadRequest, "id: it is not an id")
	}
	return s.cfg.Restore(context.WithoutCancel(r.Context()), id, reason, actor)
}

func (s *Server) reload(r *http.Request, actor string) (any, error) {
	if err := decodeBody(r, nil); err != nil {
		return nil, err
	}
	result, err := s.cfg.Reload(context.WithoutCancel(r.Context()), actor)
	result.Changed, result.Files = list(result.Changed), list(result.Files)
	return result, err
}

// streamStall is how long a reader may take no bytes before its stream is cut.
const streamStall = 10 * time.Second

// decisions streams audit records as JSON lines. A failure after the first byte
// breaks the stream off, so that its reader does not take it for complete.
func (s *Server) decisions(streaming context.Context, w http.ResponseWriter, r *http.Request) {
	query, err := decisionQuery(r)
	if err != nil {
		writeError(w, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if query.Follow {
		select {
		case s.streams <- struct{}{}:
			defer func() { <-s.streams }()
		default:
			writeError(w, NewError(CodeBusy, fmt.Sprintf("%d streams follow already", maxStreams)))
			return
		}
		defer context.AfterFunc(streaming, cancel)()
	}
	control := http.NewResponseController(w)
	begun := false
	begin := func() {
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
		begun = true
	}
	if query.Follow {
		begin()
		if err := control.Flush(); err != nil {
			return
		}
	}
	err = s.cfg.Decisions(ctx, query, func(line []byte) error {
		if !begun {
			begin()
		}
		if err := control.SetWriteDeadline(time.Now().Add(streamStall)); err != nil {
			return err
		}
		if _, err := w.Write(append(slices.Clip(line), '\n')); err != nil {
			return err
		}
		if query.Follow {
			return control.Flush()
		}
		return nil
	})
	switch {
	case err == nil && !begun:
		begin()
	case err == nil || ctx.Err() != nil:
	case !begun:
		writeError(w, err)
	default:
		panic(http.ErrAbortHandler)
	}
}

func decisionQuery(r *http.Request) (DecisionQuery, error) {
	if err := onlyQuery(r, "limit", "follow", "kind", "decision"); err != nil {
		return DecisionQuery{}, err
	}
	values := r.URL.Query()
	q := DecisionQuery{Limit: DefaultDecisions, Kind: values.Get("kind"), Decision: values.Get("decision")}
	if text := values.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxDecisions {
			return q, NewError(CodeBadRequest, fmt.Sprintf("limit: %.40q is not a number from 1 to %d", text, MaxDecisions))
		}
		q.Limit = n
	}
	if text := values.Get("follow"); text != "" {
		follow, err := strconv.ParseBool(text)
		if err != nil {
			return q, NewError(CodeBadRequest, fmt.Sprintf("follow: %.40q is not true or false", text))
		}
		q.Follow = follow
	}
	return q, nil
}

// onlyQuery refuses query parameters that are unknown or given twice.
func onlyQuery(r *http.Request, known ...string) error {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return NewError(CodeBadRequest, "the query is malformed")
	}
	for name, given := range values {
		if !slices.Contains(known, name) {
			return NewError(CodeBadRequest, fmt.Sprintf("%.40s: unknown query parameter%s", strconv.Quote(name), choices(known)))
		}
		if len(given) > 1 {
			return NewError(CodeBadRequest, name+": it is given twice")
		}
	}
	return nil
}

func choices(known []string) string {
	if len(known) == 0 {
		return "; none is taken here"
	}
	return "; known are " + strings.Join(known, ", ")
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		writeError(w, fmt.Errorf("encode answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The peer may be gone and gets no answer.
	_, _ = w.Write(append(body, '\n'))
}

func writeError(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) || e.Status < 400 || e.Status > 599 {
		e = NewError(CodeInternal, err.Error())
	}
	body, err := json.Marshal(e)
	if err != nil {
		body = []byte(`{"status":500,"code":"internal","message":"the error cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_, _ = w.Write(append(body, '\n'))
}
