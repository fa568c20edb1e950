package topology

import (
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxText bounds every text of a topology, in bytes.
const maxText = 4096

// checkText holds a text against the tags of its field and returns what is wrong and what would be right.
func (f *fieldModel) checkText(s string) (problem, hint string) {
	q := strconv.Quote(clip(s))
	switch {
	case len(s) > maxText:
		return fmt.Sprintf("has %d bytes, more than %d", len(s), maxText), ""
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return control(r) || r == '\n' || r == '\t' }):
		return q + " has a line break or control character", "one line of plain text"
	case f.typ.shape == shapeMap && f.pattern == nil:
		return "", ""
	case s == "" && f.typ.shape != shapeMap:
		return "is empty", "give it a value or remove the line"
	case f.enum != nil && !slices.Contains(f.enum, s):
		return q + " is not allowed", enumHint(s, f.enum)
	case f.pattern != nil && !f.pattern.MatchString(s):
		return q + " is not allowed", "use " + f.form
	case f.format != "":
		return formatProblem(f.format, s)
	}
	return "", ""
}

func enumHint(s string, enum []string) string {
	all := "one of: " + strings.Join(enum, ", ")
	if best := nearest(s, enum); best != "" {
		return "did you mean " + strconv.Quote(best) + "? " + all
	}
	return all
}

func (f *fieldModel) checkInt(i int64) (problem, hint string) {
	switch {
	case f.min != nil && i < *f.min:
		return fmt.Sprintf("%d is too small", i), f.bounds()
	case f.max != nil && i > *f.max:
		return fmt.Sprintf("%d is too large", i), f.bounds()
	}
	return "", ""
}

// bounds says minimum and maximum in words.
func (f *fieldModel) bounds() string {
	switch {
	case f.min != nil && f.max != nil:
		return fmt.Sprintf("%d to %d", *f.min, *f.max)
	case f.min != nil:
		return fmt.Sprintf("%d or more", *f.min)
	}
	return ""
}

func keyProblem(f *fieldModel, k string) string {
	if f.keys != nil && !f.keys.MatchString(k) {
		return strconv.Quote(clip(k)) + " is not allowed as a key"
	}
	if k == "" || len(k) > maxText || strings.ContainsFunc(k, func(r rune) bool { return control(r) || r == '\n' || r == '\t' }) {
		return strconv.Quote(clip(k)) + " is not allowed as a key"
	}
	return ""
}

var (
	addrType   = reflect.TypeFor[netip.Addr]()
	prefixType = reflect.TypeFor[netip.Prefix]()
)

// parseText parses a value of a type that reads itself, with our own words for the types of other packages.
func parseText(m *typeModel, f *fieldModel, s string) (v reflect.Value, problem, hint string) {
	q := strconv.Quote(clip(s))
	if s == "" {
		return v, "is empty", "give it a value or remove the line"
	}
	v, err := m.parse(s)
	switch {
	case m.goType == addrType:
		a, _ := v.Interface().(netip.Addr)
		if err != nil || a.Zone() != "" {
			return v, q + " is not an IP address", "e.g. 10.1.0.17"
		}
		return reflect.ValueOf(a.Unmap()), "", ""
	case m.goType == prefixType:
		p, _ := v.Interface().(netip.Prefix)
		if err != nil {
			return v, q + " is not a subnet", "e.g. 10.1.0.0/24"
		}
		if p.Masked() != p {
			return v, q + " has bits set after its prefix", "write " + p.Masked().String()
		}
		if p.Addr().Is4In6() {
			return v, q + " is an IPv4 subnet in IPv6 form", "e.g. 10.1.0.0/24"
		}
		return v, "", ""
	case err != nil:
		return v, clipTo(err.Error(), 200), ""
	}
	if f != nil && f.enum != nil && !slices.Contains(f.enum, s) {
		return v, q + " is not allowed", enumHint(s, f.enum)
	}
	return v, "", ""
}

// formatProblem checks the endpoint formats of the format tag.
func formatProblem(format, s string) (problem, hint string) {
	q := strconv.Quote(clip(s))
	switch format {
	case "hostport":
		if !hostPort(s) {
			return q + " is not host:port", "e.g. 10.0.9.17:3260"
		}
	case "https":
		return urlProblem(s, "https")
	case "socks5":
		return urlProblem(s, "socks5")
	case "bmc":
		if strings.HasPrefix(s, "amt://") {
			return urlProblem(s, "amt")
		}
		if strings.Contains(s, "://") {
			return urlProblem(s, "https")
		}
		if !host(s) && !hostPort(s) {
			return q + " is not a host, host:port, https or amt URL", "e.g. https://10.0.9.17"
		}
	case "ovsdb":
		scheme, rest, _ := strings.Cut(s, ":")
		ok := (scheme == "tcp" || scheme == "ssl") && hostPort(rest) || scheme == "unix" && strings.HasPrefix(rest, "/")
		if !ok {
			return q + " is not an OVSDB endpoint", "tcp:host:port, ssl:host:port or unix:/path"
		}
	}
	return "", ""
}

// urlProblem accepts scheme://host[:port] and nothing more: a user name would be a secret in the open, and
// paths are the driver's business.
func urlProblem(s, scheme string) (problem, hint string) {
	q := strconv.Quote(clip(s))
	u, err := url.Parse(s)
	eg := "e.g. " + scheme + "://10.0.9.17:8443"
	switch {
	case err != nil || u.Host == "" || u.Scheme != scheme:
		return q + " is not of the form " + scheme + "://host[:port]", eg
	case u.User != nil:
		return "the URL holds a user name or password", "name a secret in credentials instead"
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return q + " has more than a host and a port", eg
	case !host(u.Host) && !hostPort(u.Host):
		return q + " has no valid host", eg
	}
	return "", ""
}

func hostPort(s string) bool {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return false
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	return err == nil && port > 0 && s[i+1] != '+' && host(s[:i])
}

// host accepts an IPv4 address, an IPv6 address in brackets, or a DNS name.
func host(s string) bool {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil && a.Is6() && strings.HasSuffix(inner, "]")
	}
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return false
		}
	}
	return true
}
