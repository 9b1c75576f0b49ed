package authz

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
)

// checkKeyPair checks that a certificate, its private key and its chain, all PEM,
// are valid and match, and returns the certificate with its chain. The error does
// not contain their content.
func checkKeyPair(certificate, key, chain string) (string, error) {
	whole := strings.TrimSpace(certificate) + "\n"
	if chain = strings.TrimSpace(chain); chain != "" {
		whole += chain + "\n"
	}
	leaf, err := parseChain([]byte(whole))
	if err != nil {
		return "", err
	}
	public, err := publicKeyOf([]byte(key))
	if err != nil {
		return "", err
	}
	if !public.Equal(leaf.PublicKey) {
		return "", errors.New("the private key is not that of the certificate")
	}
	return whole, nil
}

// parseChain returns the first of the certificates.
func parseChain(data []byte) (*x509.Certificate, error) {
	var leaf *x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("the certificate holds a PEM block of another type")
		}
		parsed, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("the certificate cannot be read")
		}
		if leaf == nil {
			leaf = parsed
		}
		data = rest
	}
	if leaf == nil || len(strings.TrimSpace(string(data))) > 0 {
		return nil, errors.New("the certificate is not whole PEM")
	}
	return leaf, nil
}

// comparableKey is implemented by every public key of the standard library.
type comparableKey interface{ Equal(crypto.PublicKey) bool }

// publicKeyOf returns the public half of a private key in PKCS #8, PKCS #1 or
// SEC 1 (RFC 5208, RFC 8017, RFC 5915), the forms that PKI engines return.
func publicKeyOf(data []byte) (comparableKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("the private key is not one PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, errors.New("the private key is of an unknown kind")
	}
	if err != nil {
		return nil, errors.New("the private key cannot be read") // the error may quote it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key does not sign")
	}
	public, ok := signer.Public().(comparableKey)
	if !ok {
		return nil, errors.New("the private key is of an unknown kind")
	}
	return public, nil
}
