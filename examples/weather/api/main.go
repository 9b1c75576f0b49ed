// Command api is the API of the README's walk: like most of a company's, it is on
// a private address, and its certificate is of an authority that only the company
// trusts. It makes that authority when it starts, and writes its certificate down.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"
)

const host = "api.weather.example"

func main() {
	address := flag.String("listen", "127.0.0.1:8443", "`ADDRESS` to listen on")
	file := flag.String("ca", "ca.pem", "`FILE` to write the authority's certificate into")
	flag.Parse()
	if err := serve(os.Stdout, *address, *file); err != nil {
		fmt.Fprintln(os.Stderr, "weather-api:", err)
		os.Exit(1) //nolint:forbidigo // the end of main
	}
}

func serve(w io.Writer, address, file string) error {
	certificate, authority, err := makeCertificate()
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	listener, err := net.Listen("tcp", address) //nolint:noctx // until the process ends
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, authority, 0o644); err != nil { //nolint:gosec // it is public
		return fmt.Errorf("write the authority's certificate: %w", err)
	}
	fmt.Fprintf(w, "https://%s is at %s; its authority is in %s\n", host, listener.Addr(), file)
	server := &http.Server{
		Handler: handler(), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
	}
	return server.ServeTLS(listener, "", "")
}

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/forecast/london", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "rain in London") })
	mux.HandleFunc("POST /v1/telemetry", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "thank you") })
	return mux
}

// makeCertificate makes an authority and a certificate of the host's, both for a year.
func makeCertificate() (certificate tls.Certificate, authority []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificate, nil, err
	}
	year := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		}
	}
	ca := year("Weather Company Authority")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return certificate, nil, err
	}
	authority = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificate, nil, err
	}
	leaf := year(host)
	leaf.DNSNames, leaf.ExtKeyUsage = []string{host}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, own.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}, authority, err
}
