package testenv

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Issuer signs JSON Web Tokens (RFC 7519, ES256), as an identity provider does.
type Issuer struct {
	// Name is the claim iss.
	Name string
	key  *ecdsa.PrivateKey
}

// NewIssuer makes an issuer with a new key.
func NewIssuer(name string) (*Issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return &Issuer{Name: name, key: key}, nil
}

// PublicKey returns the key that checks the tokens, as PEM.
func (i *Issuer) PublicKey() (string, error) {
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		return "", fmt.Errorf("encode key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// Token returns a token for subject and audience that ends after ttl. more are
// further claims; they win over those of the issuer.
func (i *Issuer) Token(subject, audience string, ttl time.Duration, more map[string]any) (string, error) {
	now := time.Now()
	claims := map[string]any{
		"iss": i.Name, "sub": subject, "aud": []string{audience},
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(ttl).Unix(), "jti": rand.Text(),
	}
	maps.Copy(claims, more)
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"ES256","typ":"JWT"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	signature := make([]byte, 64) // RFC 7518, section 3.4
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + encode(signature), nil
}

// claims returns the claims of a token that the issuer signed and that has not
// ended.
func (i *Issuer) claims(token string) (map[string]any, error) {
	return Claims(token, &i.key.PublicKey)
}

// Claims checks the signature (ES256) and the end of a token and returns its
// claims.
func Claims(token string, key crypto.PublicKey) (map[string]any, error) {
	public, ok := key.(*ecdsa.PublicKey)
	parts := strings.Split(token, ".")
	if !ok || len(parts) != 3 {
		return nil, errors.New("not a token of three parts signed by ECDSA")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err != nil || len(signature) != 64 || !ecdsa.Verify(public, digest[:],
		new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		return nil, errors.New("the signature is wrong")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, fmt.Errorf("decode claims: %w", err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, fmt.Errorf("decode claims: %w", err)
	}
	if end, _ := claims["exp"].(float64); time.Unix(int64(end), 0).Before(time.Now()) {
		return nil, errors.New("the token has ended")
	}
	return claims, nil
}

// Kubernetes is the part of a Kubernetes API server that identifies a service
// account's token (TokenReview, authentication.k8s.io/v1). It is a fake, because
// a cluster cannot be started here. Tokens are signed by its
// Issuer.
type Kubernetes struct {
	// Address is its URL, http.
	Address string
	Issuer  *Issuer
	server  *http.Server
}

// MustKubernetes starts one for the length of a test.
func MustKubernetes(t testing.TB) *Kubernetes {
	t.Helper()
	return mustStart(t, StartKubernetes)
}

// StartKubernetes starts one on a free port of the loopback.
func StartKubernetes(ctx context.Context) (*Kubernetes, error) {
	issuer, err := NewIssuer("https://kubernetes.default.svc.cluster.local")
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{Address: "http://" + listener.Addr().String(), Issuer: issuer}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", k.review)
	k.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = k.server.Serve(listener) }()
	return k, nil
}

// Close ends it.
func (k *Kubernetes) Close() error { return k.server.Close() }

// ServiceAccountToken returns a projected token for audience "vault".
func (k *Kubernetes) ServiceAccountToken(namespace, name string, ttl time.Duration) (string, error) {
	return k.Issuer.Token("system:serviceaccount:"+namespace+":"+name, "vault", ttl, map[string]any{
		"kubernetes.io": map[string]any{
			"namespace":      namespace,
			"serviceaccount": map[string]any{"name": name, "uid": "0b1c2d3e"},
		},
	})
}

func (k *Kubernetes) review(w http.ResponseWriter, r *http.Request) {
	var review struct {
		Spec struct {
			Token string `json:"token"`
		} `json:"spec"`
	}
	status := map[string]any{"authenticated": false}
	if err := json.NewDecoder(r.Body).Decode(&review); err == nil {
		if claims, err := k.Issuer.claims(review.Spec.Token); err == nil {
			status = map[string]any{
				"authenticated": true, "audiences": []string{"vault"},
				"user": map[string]any{"username": claims["sub"], "uid": "0b1c2d3e", "groups": []string{"system:serviceaccounts"}},
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status,
	})
}
