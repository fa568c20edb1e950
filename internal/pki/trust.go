package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Trust makes the TLS configuration for a device: its certificate has exactly this SHA-256 fingerprint
// (hex, colons allowed) or, without one, is signed by one of the authorities in caPEM or, without
// those, by one of the system's.
func Trust(caPEM, fingerprint string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if fingerprint != "" {
		want, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(fingerprint), ":", ""))
		if err != nil || len(want) != sha256.Size {
			return nil, &fault.Error{Kind: fault.Invalid, What: "certificate fingerprint", Evidence: fingerprint, Next: "give the SHA-256 in 64 hex digits"}
		}
		c.InsecureSkipVerify = true //nolint:gosec // the pinned certificate is compared instead
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			got := sha256.Sum256(cs.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(got[:], want) != 1 {
				return fault.Newf(fault.Unauthorized, "the device's certificate is not the pinned one; it has fingerprint %x", got)
			}
			return nil
		}
		return c, nil
	}
	if caPEM != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(caPEM)) {
			return nil, fault.New(fault.Invalid, "device CA: no certificate in it")
		}
	}
	return c, nil
}
