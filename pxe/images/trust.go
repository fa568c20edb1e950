package images

import (
	"fmt"
	"os"
	"strings"

	"aead.dev/minisign"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// Keys are the makers whose images are trusted; none means that signatures are not asked for.
type Keys []minisign.PublicKey

const maxSignature = 4 << 10

// ReadKeys reads public keys from files as minisign writes them.
func ReadKeys(files []string) (Keys, error) {
	var out Keys
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: name, What: "read image key", Err: err}
		}
		var k minisign.PublicKey
		if err := k.UnmarshalText(b); err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: name, What: "it holds no minisign public key", Err: err, Next: "name the .pub file that minisign -G made"}
		}
		out = append(out, k)
	}
	return out, nil
}

// Approve checks the signature of a record with the key that it names, and returns that key's id. Where keys are
// trusted there must be a signature of one; where none are, what is signed is kept as it came, unjudged.
func (k Keys) Approve(r *Record) (string, error) {
	where := "image " + r.Manifest.Name
	if len(k) == 0 {
		return "", nil
	}
	if r.Signature == "" {
		return "", &fault.Error{Kind: fault.Unverified, Where: where, What: "it is not signed, and this server takes signed images only",
			Next: "sign what rerack image manifest prints with minisign, and import with --signature"}
	}
	var sig minisign.Signature
	if err := parseSignature(r.Signature, &sig); err != nil {
		return "", fault.Wrap(err, "check signature", where)
	}
	for _, key := range k {
		if key.ID() != sig.KeyID {
			continue
		}
		if !minisign.Verify(key, r.Manifest.Text(), []byte(r.Signature)) {
			return "", &fault.Error{Kind: fault.Unverified, Where: where, What: "its signature is for something else",
				Evidence: fmt.Sprintf("key %016X", sig.KeyID), Next: "compare rerack image manifest with what was signed"}
		}
		return fmt.Sprintf("%016X", sig.KeyID), nil
	}
	return "", &fault.Error{Kind: fault.Unverified, Where: where, What: "it is signed with a key that is not trusted",
		Evidence: fmt.Sprintf("key %016X", sig.KeyID), Next: "name its public key to the server with --image-key"}
}

// parseSignature reads a signature file, whose form is four lines (https://jedisct1.github.io/minisign/).
func parseSignature(text string, sig *minisign.Signature) error {
	if len(text) > maxSignature {
		return fault.Newf(fault.Invalid, "signature of %d bytes: at most %d", len(text), maxSignature)
	}
	if strings.Count(text, "\n") < 3 {
		return fault.New(fault.Invalid, "not a minisign signature: it has less than four lines")
	}
	if err := sig.UnmarshalText([]byte(text)); err != nil {
		return &fault.Error{Kind: fault.Invalid, What: "not a minisign signature", Err: err}
	}
	return nil
}

// trusted refuses to serve what is in no signed image, where signatures are asked for. Files that the server's own
// code imported by name, its boot loaders, are its own word.
func (s *Store) trusted(d pxe.Digest) error {
	if len(s.opt.Keys) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own[d] {
		return nil
	}
	if s.signed == nil {
		all, err := s.Images()
		s.signed = map[pxe.Digest]bool{}
		for _, r := range all {
			if _, err := s.opt.Keys.Approve(&r); err != nil {
				continue
			}
			for _, p := range r.Manifest.Files {
				s.signed[p.Digest] = true
			}
		}
		if err != nil && !s.signed[d] {
			s.signed = nil
			return err
		}
	}
	if s.signed[d] {
		return nil
	}
	return &fault.Error{Kind: fault.Unverified, Where: "image " + string(d), What: "it belongs to no image with a trusted signature",
		Next: "import it with --signature, or see rerack image verify"}
}

// forget makes the next question about signatures read the manifests again.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signed = nil
}
