package bmcsim

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	soapNS      = "http://www.w3.org/2003/05/soap-envelope"
	addressNS   = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
	wsmanNS     = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
	enumNS      = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
	transferNS  = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
	cimSchema   = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
	amtSchema   = "http://intel.com/wbem/wscim/1/amt-schema/1/"
	anonymousTo = addressNS + "/role/anonymous"
)

// document is a body that is not JSON.
type document struct{ contentType, text string }

// amtRef is a reference in a request's argument.
type amtRef struct {
	Class     string        `xml:"ReferenceParameters>ResourceURI"`
	Selectors []amtSelector `xml:"ReferenceParameters>SelectorSet>Selector"`
}

type amtSelector struct {
	Name  string `xml:",attr"`
	Value string `xml:",chardata"`
}

func key(selectors []amtSelector, name string) string {
	for _, s := range selectors {
		if s.Name == name {
			return strings.TrimSpace(s.Value)
		}
	}
	return ""
}

// amtRequest is every request that is understood here.
type amtRequest struct {
	Header struct {
		Action      string
		MessageID   string
		ResourceURI string
		Selectors   []amtSelector `xml:"SelectorSet>Selector"`
	}
	Body struct {
		Enumerate *struct {
			EnumerationMode string
			Filter          *struct {
				Dialect        string `xml:",attr"`
				Object         amtRef `xml:"AssociationInstances>Object"`
				AssociationsOf string `xml:"AssociationInstances>ResultClassName"`
				Role           string `xml:"AssociationInstances>Role"`
			}
		}
		Pull  *struct{ EnumerationContext string }
		Power *struct {
			PowerState     string
			ManagedElement amtRef
		} `xml:"RequestPowerStateChange_INPUT"`
		Order *struct {
			Source []amtRef
		} `xml:"ChangeBootOrder_INPUT"`
		Role *struct {
			BootConfigSetting amtRef
			Role              string
		} `xml:"SetBootConfigRole_INPUT"`
		Options *struct {
			Properties []struct {
				XMLName xml.Name
				Value   string `xml:",chardata"`
			} `xml:",any"`
		} `xml:"AMT_BootSettingData"`
	}
}

// soap answers one envelope.
func (b *BMC) soap(raw string) reply {
	var q amtRequest
	if err := xml.Unmarshal([]byte(raw), &q); err != nil {
		return html(http.StatusBadRequest)
	}
	class := q.Header.ResourceURI[strings.LastIndexByte(q.Header.ResourceURI, '/')+1:]
	if q.Header.ResourceURI != namespace(class) {
		return q.fault("wsa:DestinationUnreachable", "No route can be determined to reach the destination role defined by the WSAddressing To.")
	}
	switch action := q.Header.Action; {
	case action == transferNS+"/Get":
		for _, i := range b.instances(class) {
			if i.selected(q.Header.Selectors) {
				return q.answer(action+"Response", class, i.xml())
			}
		}
		return q.fault("wsa:DestinationUnreachable", "No such instance.")
	case action == transferNS+"/Put" && q.Body.Options != nil && class == "AMT_BootSettingData":
		return b.putOptions(q, class)
	case action == enumNS+"/Enumerate" && q.Body.Enumerate != nil:
		return b.enumerate(q, class)
	case action == enumNS+"/Pull" && q.Body.Pull != nil:
		return b.pull(q, class)
	case action == namespace(class)+"/RequestPowerStateChange" && q.Body.Power != nil:
		v := amtInvalid
		if key(q.Body.Power.ManagedElement.Selectors, "Name") == "ManagedSystem" {
			v = b.amtPress(q.Body.Power.PowerState)
		}
		return q.returned(class, "RequestPowerStateChange", v)
	case action == namespace(class)+"/ChangeBootOrder" && q.Body.Order != nil:
		return q.returned(class, "ChangeBootOrder", b.changeOrder(q.Body.Order.Source))
	case action == namespace(class)+"/SetBootConfigRole" && q.Body.Role != nil:
		return q.returned(class, "SetBootConfigRole", b.setRole(key(q.Body.Role.BootConfigSetting.Selectors, "InstanceID"), q.Body.Role.Role))
	}
	return q.fault("wsa:ActionNotSupported", "The action is not supported by the service.")
}

// enumerate begins an enumeration: of a class, or of all classes with an association filter.
func (b *BMC) enumerate(q amtRequest, class string) reply {
	of, f := class, q.Body.Enumerate.Filter
	switch {
	case f != nil && class == "*" && f.Dialect == "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter":
		of = f.AssociationsOf
	case f != nil || class == "*":
		return q.fault("wsen:CannotProcessFilter", "The filter is not supported for this resource.")
	}
	all := b.instances(of)
	if all == nil {
		return q.fault("wsa:DestinationUnreachable", "No such class.")
	}
	var items []string
	for _, i := range all {
		switch {
		case f != nil && !i.refers(f.Role, f.Object):
		case q.Body.Enumerate.EnumerationMode == "EnumerateEPR":
			items = append(items, "<a:EndpointReference>"+i.reference()+"</a:EndpointReference>")
		default:
			items = append(items, i.xml())
		}
	}
	id := token()
	b.mu.Lock()
	if len(b.amt.enums) >= 64 { // those who went away without an end
		clear(b.amt.enums)
	}
	b.amt.enums[id] = amtEnum{class, items}
	b.mu.Unlock()
	return q.answer(enumNS+"/EnumerateResponse", class, "<n:EnumerateResponse><n:EnumerationContext>"+id+"</n:EnumerationContext></n:EnumerateResponse>")
}

// perPull is how many instances one Pull gives: few, so that clients have to go on.
const perPull = 2

func (b *BMC) pull(q amtRequest, class string) reply {
	id := q.Body.Pull.EnumerationContext
	endless := b.Faults().LoopLinks
	b.mu.Lock()
	e, ok := b.amt.enums[id]
	n := min(perPull, len(e.items))
	items, rest := e.items[:n], e.items[n:]
	if len(rest) > 0 || endless {
		b.amt.enums[id] = amtEnum{e.resource, rest}
	} else {
		delete(b.amt.enums, id)
	}
	b.mu.Unlock()
	if !ok || e.resource != class {
		return q.fault("wsen:InvalidEnumerationContext", "The supplied enumeration context is invalid.")
	}
	end := "<n:EndOfSequence/>"
	if len(rest) > 0 || endless {
		end = "<n:EnumerationContext>" + id + "</n:EnumerationContext>"
	}
	return q.answer(enumNS+"/PullResponse", class, "<n:PullResponse><n:Items>"+strings.Join(items, "")+"</n:Items>"+end+"</n:PullResponse>")
}

func (b *BMC) changeOrder(sources []amtRef) int {
	source := ""
	if len(sources) > 0 {
		source = key(sources[0].Selectors, "InstanceID")
		_, _, options := b.amtBoot()
		for _, o := range []string{"UseIDER", "ReflashBIOS", "BIOSPause", "BIOSSetup"} {
			if options[o] == "true" {
				return amtInvalid // not beside a boot source
			}
		}
		if !slices.Contains(amtSources(), source) {
			return amtInvalid
		}
	}
	if b.amtArrange(func(a *amtState) { a.source = source }) != nil {
		return 2 // unknown or unspecified error
	}
	return 0
}

func (b *BMC) setRole(config, role string) int {
	n, err := strconv.Atoi(role)
	if err != nil || config != amtConfig || n != amtNextSingleUse && n != amtNotNext {
		return amtInvalid
	}
	if b.amtArrange(func(a *amtState) { a.role = n }) != nil {
		return 2
	}
	return 0
}

// readOnlyOptions are told and not taken: a Put that holds one violates the schema.
func readOnlyOptions() []string {
	return []string{"BIOSLastStatus", "BootguardStatus", "OptionsCleared", "SecureBootControlEnabled", "UEFIHTTPSBootEnabled", "UEFILocalPBABootEnabled", "WinREBootEnabled"}
}

func (b *BMC) putOptions(q amtRequest, class string) reply {
	b.count("options.put")
	set := map[string]string{}
	for _, p := range q.Body.Options.Properties {
		if slices.Contains(readOnlyOptions(), p.XMLName.Local) || p.XMLName.Space != namespace(class) {
			return q.fault("wsman:SchemaValidationError", "The supplied SOAP violates the corresponding XML schema definition.")
		}
		if v := strings.TrimSpace(p.Value); v == "true" || v != "false" && v != "0" && (p.XMLName.Local == "BootMediaIndex" || p.XMLName.Local == "IDERBootDevice") {
			set[p.XMLName.Local] = v
		}
	}
	b.mu.Lock()
	b.amt.options = set
	b.mu.Unlock()
	return q.answer(transferNS+"/PutResponse", class, b.instances(class)[0].xml())
}

func (q amtRequest) returned(class, method string, v int) reply {
	return q.answer(namespace(class)+"/"+method+"Response", class, fmt.Sprintf("<r:%s_OUTPUT><r:ReturnValue>%d</r:ReturnValue></r:%s_OUTPUT>", method, v, method))
}

func (q amtRequest) answer(action, class, body string) reply {
	return q.envelope(http.StatusOK, action, class, body)
}

func (q amtRequest) fault(code, reason string) reply {
	return q.envelope(http.StatusBadRequest, addressNS+"/fault", "fault",
		"<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>"+code+"</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang=\"en-US\">"+reason+"</s:Text></s:Reason></s:Fault>")
}

func (q amtRequest) envelope(status int, action, class, body string) reply {
	return reply{status: status, body: document{"application/soap+xml; charset=UTF-8", `<?xml version="1.0" encoding="UTF-8"?>` +
		`<s:Envelope xmlns:s="` + soapNS + `" xmlns:a="` + addressNS + `" xmlns:w="` + wsmanNS + `" xmlns:n="` + enumNS + `" xmlns:r="` + namespace(class) + `"><s:Header>` +
		"<a:To>" + anonymousTo + "</a:To><a:RelatesTo>" + escapeXML(q.Header.MessageID) + `</a:RelatesTo><a:Action s:mustUnderstand="true">` + action + "</a:Action>" +
		"<a:MessageID>uuid:00000000-8086-8086-8086-000000000001</a:MessageID><w:ResourceURI>" + namespace(class) + "</w:ResourceURI></s:Header><s:Body>" + body + "</s:Body></s:Envelope>"}}
}

func namespace(class string) string {
	switch {
	case class == "*":
		return "http://schemas.dmtf.org/wbem/wscim/1/*"
	case strings.HasPrefix(class, "AMT_"):
		return amtSchema + class
	}
	return cimSchema + class
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
