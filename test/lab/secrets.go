package lab

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// maxIPMIPassword is the longest password that every BMC here knows: IPMI 2.0 has 20 bytes (section 22.30), of
// which ipmi_sim takes the first 16, as many as IPMI 1.5 has. A BMC has one for both protocols.
const maxIPMIPassword = 16

// Credential is a login to one device, or to all that share its name.
type Credential struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// secrets maps the credential names of the topology to made-up logins.
type secrets map[string]Credential

// makeSecrets makes one login for every name that the topology uses.
func makeSecrets(t *topology.Topology) secrets {
	s := secrets{}
	as := func(user, name string) {
		if _, ok := s[name]; !ok && name != "" {
			s[name] = Credential{Username: user, Password: rand.Text()[:maxIPMIPassword]}
		}
	}
	need := func(name string) { as("rerack", name) }
	for _, m := range t.Machines {
		need(m.Spec.BMC.Credentials)
	}
	for _, d := range t.Switches {
		need(d.Spec.Credentials)
	}
	for _, d := range t.Fabrics {
		need(d.Spec.Credentials)
	}
	for _, d := range t.Arrays {
		need(d.Spec.Credentials)
	}
	for _, v := range t.Volumes {
		as(strings.ReplaceAll(v.Spec.CHAP, "/", "-"), v.Spec.CHAP) // an array knows one secret for a user
	}
	return s
}

func (s secrets) of(name string) (Credential, error) {
	c, ok := s[name]
	if !ok {
		return c, &fault.Error{Kind: fault.NotFound, Where: "credentials " + name, What: "find the login", Next: "name one in the topology"}
	}
	return c, nil
}

func (s secrets) write(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fault.Wrap(err, "render", "secrets")
	}
	return fault.Wrap(os.WriteFile(filepath.Join(dir, "secrets.json"), b, 0o600), "write", "secrets")
}

// Secrets returns the logins of all simulated devices, by credential name.
func (l *Lab) Secrets() map[string]Credential { return maps.Clone(l.secrets) }
