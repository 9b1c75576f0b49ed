package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/chaperone-proxy/chaperone/configs"
)

// web serves /metrics, /healthz and /readyz.
type web struct {
	server   *http.Server
	listener net.Listener
}

func (s *sidecar) makeWeb(spec *configs.Sidecar) error {
	if spec.Listen.Metrics.IsZero() {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.serveReady)
	s.web = &web{server: &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
	return nil
}

// serveReady answers 200 when the sidecar is ready; ?verbose names each check.
func (s *sidecar) serveReady(w http.ResponseWriter, r *http.Request) {
	status, body := http.StatusOK, ""
	for _, c := range s.checks() {
		mark := "[+]" + c.name + " ok"
		if c.err != nil {
			status, mark = http.StatusServiceUnavailable, "[-]"+c.name+" "+c.err.Error()
		}
		body += mark + "\n"
	}
	body += s.remarkOnEnvoy()
	w.WriteHeader(status)
	switch {
	case r.URL.Query().Has("verbose"):
		fmt.Fprint(w, body)
	case status == http.StatusOK:
		fmt.Fprintln(w, "ok")
	default:
		fmt.Fprintln(w, "not ready")
	}
}

func (w *web) listen(ctx context.Context, address string) (err error) {
	w.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	return err
}

func (w *web) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = w.server.Shutdown(drain) // a scrape that does not end is cut by Close
		_ = w.server.Close()
	})
	defer stop()
	if err := w.server.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
