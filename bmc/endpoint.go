package bmc

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/secret"
)

// Protocol names the wire protocol of a BMC.
type Protocol string

const (
	Auto    Protocol = "auto" // found out by probing, remembered for Config.ProtocolTTL
	Redfish Protocol = "redfish"
	IPMI    Protocol = "ipmi"
	AMT     Protocol = "amt"    // Intel AMT: WS-Management over HTTPS
	BMCLib  Protocol = "bmclib" // vendor protocols that only bmclib reaches; never chosen by probing
)

// Endpoint says where the BMC of one machine is, how it is trusted, and whose machine it must be.
// Endpoints are comparable; two equal ones share one Client.
type Endpoint struct {
	Machine       string   // for messages
	Address       string   // host, host:port, https://host[:port] or amt://host[:port], which says the protocol too
	Protocol      Protocol // empty means Auto
	CredentialRef string   // resolved by Config.Credentials at login, never kept
	CA            string   // PEM certificates that sign the BMC's certificate; empty means the system's
	Fingerprint   string   // SHA-256 of the BMC's own certificate, hex, colons allowed; stronger than CA
	ExpectUUID    string   // as in SMBIOS type 1
	ExpectSerial  string   // serial number or service tag
}

// Validate reports the first wrong field by its name.
func (e Endpoint) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, Where: e.where(), What: "endpoint " + key, Evidence: why}
	}
	if _, err := e.HostPort("443"); err != nil {
		return bad("address", err.Error())
	}
	switch e.Protocol {
	case "", Auto, Redfish, IPMI, AMT, BMCLib:
	default:
		return bad("protocol", fmt.Sprintf("%q is none of auto, redfish, ipmi, amt, bmclib", e.Protocol))
	}
	if p := e.speaks(); p != e.Protocol && e.Protocol != "" && e.Protocol != Auto {
		return bad("protocol", fmt.Sprintf("is %s, but the address is of %s", e.Protocol, p))
	}
	if e.Fingerprint != "" {
		if _, err := ParseFingerprint(e.Fingerprint); err != nil {
			return bad("fingerprint", err.Error())
		}
	}
	return nil
}

// HostPort returns the address as host:port, with defaultPort when it names none.
func (e Endpoint) HostPort(defaultPort string) (string, error) {
	a := strings.TrimSpace(e.Address)
	if strings.Contains(a, "://") {
		u, err := url.Parse(a)
		switch {
		case err != nil:
			return "", fmt.Errorf("%q is not a URL", a)
		case u.Scheme != "https" && u.Scheme != string(AMT):
			return "", fmt.Errorf("scheme %q: only https and amt, which is over TLS, are spoken to a BMC", u.Scheme)
		case u.User != nil || u.RawQuery != "" || (u.Path != "" && u.Path != "/"):
			return "", fmt.Errorf("a BMC address is %s://host[:port] and no more", u.Scheme)
		}
		a = u.Host
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		host, port = strings.Trim(a, "[]"), defaultPort
	}
	if host == "" || strings.ContainsAny(host, " /@?#\\") {
		return "", fmt.Errorf("%q has no host", e.Address)
	}
	return net.JoinHostPort(host, port), nil
}

// speaks is the protocol asked for: that of the address's scheme, else the declared one, else Auto.
func (e Endpoint) speaks() Protocol {
	switch scheme, _, ok := strings.Cut(strings.TrimSpace(e.Address), "://"); {
	case ok && scheme == string(AMT):
		return AMT
	case e.Protocol == "":
		return Auto
	}
	return e.Protocol
}

func (e Endpoint) where() string {
	if e.Machine == "" {
		return "BMC " + e.Address
	}
	return "machine " + e.Machine + ", BMC " + e.Address
}

// ParseFingerprint reads a SHA-256 certificate fingerprint: 64 hex digits, colons allowed.
func ParseFingerprint(s string) ([sha256.Size]byte, error) {
	var out [sha256.Size]byte
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), ":", ""))
	if err != nil || len(raw) != sha256.Size {
		return out, fmt.Errorf("a fingerprint is the certificate's SHA-256 in 64 hex digits")
	}
	copy(out[:], raw)
	return out, nil
}

// Secret is a password.
type Secret = secret.Text

// NewSecret wraps a password.
func NewSecret(s string) Secret { return secret.New(s) }

// Credential is what a BMC login needs.
type Credential struct {
	User     string
	Password Secret
}

// sum tells one credential from another without keeping it.
func (c Credential) sum() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s:", len(c.User), c.User)
	h.Write([]byte(c.Password.Reveal()))
	return [sha256.Size]byte(h.Sum(nil))
}
